package delivery

import "fmt"

// fetch takes what the log has next into the batch. Where it does not begin at
// the end of the last fetch, the claim must know the epoch before it: the log may
// have lost its end in between, and got other records at the same offsets.
func (m *Machine) fetch() {
	if m.elsewhere {
		m.note(Seek{m.next, m.epoch})
		m.elsewhere = false
	}
	m.do(Fetch{m.next}, m.fetched, m.notFetched)
}

func (m *Machine) fetched(e Event) {
	delete(m.failures, "fetch")
	if e.Offset >= 0 && !m.block.open {
		m.open(e.Offset, e.First)
	}
	if e.Epoch >= 0 {
		m.epoch = e.Epoch
	}
	m.advance(e.Next)
	m.logEnd, m.elsewhere = e.End, m.held.Full
	switch {
	case !m.block.open || !e.Due:
		m.fetch()
	case m.refusedAt >= 0 && m.held.Full:
		m.shrink()
	default:
		m.flush()
	}
}

// advance moves on to an offset, up to which the batch has what there is.
func (m *Machine) advance(next int64) {
	m.next = next
	if m.block.open {
		m.block.to = next
	}
}

func (m *Machine) notFetched(e Event) {
	switch e.Outcome {
	case Corrupt:
		if !m.block.open {
			m.open(e.Offset, 0)
		}
		m.note(DivertCorrupt{Offset: e.Offset, Next: e.Next, Err: e.Err})
		m.advance(e.Next)
		m.fetch()
	case OutOfRange:
		m.do(ReadBounds{}, m.skipLost, m.retryFetch)
	default:
		m.retryFetch(e)
	}
}

func (m *Machine) retryFetch(e Event) {
	m.retry("fetch", e.Err, func(Event) { m.fetch() })
}

// skipLost goes on at the start of the log when retention has deleted what
// nobody has read. When Kafka has lost the end of the log, the rest of it
// is read again from the committed offset.
func (m *Machine) skipLost(e Event) {
	switch {
	case m.next > e.End:
		m.startOver(Event{Err: fmt.Errorf("fetch offset %d: the log ends at %d", m.next, e.End)})
	case m.next >= e.Start:
		m.retryFetch(Event{Err: fmt.Errorf("fetch offset %d: refused as out of range, but the log has [%d, %d)", m.next, e.Start, e.End)})
	default:
		m.note(RecordsLost{From: m.next, Start: e.Start, End: e.End})
		m.advance(e.Start)
		m.fetch()
	}
}

// shrink makes room in a full batch when rows before it were refused and nothing
// else was taken since: these wait for others, which must have a place.
func (m *Machine) shrink() {
	m.takeResent(func() {
		m.keepMissing(m.startOver, func() {
			if m.held.Full {
				m.flush()
				return
			}
			m.fetch()
		})
	})
}

package delivery

import (
	"errors"
	"fmt"
	"time"
)

// block is the range under way, and the state of its rows.
type block struct {
	open     bool
	from, to int64 // offsets [from, to)
	before   int32 // leader epoch of the last record before from
	first    int64 // as in Range

	// maybeStored means that rows may be stored already: by an owner before us, or by
	// an earlier attempt.
	maybeStored bool
	planned     bool      // an earlier owner planned this very range, and may have used its token
	announced   time.Time // when this owner began to commit its plan
	tried       time.Time // when the block was first sent under token
	token       string    // empty means that of the range
	own         bool      // nothing was ever sent under token, and nobody else can
	answered    bool      // ClickHouse itself answered the last attempt, and with an error
	tooMuch     int       // how often it did so with an error that smaller blocks might not meet

	rows        int // when it was announced
	found       int // of the rows, how many were left out because they are stored
	unsureFound int // part of found: rows that an unknown writer stored
	refused     int // rows in dead letters
}

// open begins a block with the record at offset from.
func (m *Machine) open(from, first int64) {
	m.block = block{open: true, from: from, to: from, before: m.epoch, first: first}
}

// drop forgets the batch. Its records are read again, by us or the next owner.
func (m *Machine) drop() {
	m.block, m.bisection, m.held = block{}, bisection{}, Batch{}
	m.note(Drop{})
}

func (m *Machine) blockRange() Range {
	return Range{
		Topic: m.partition.Topic, Partition: m.partition.Number, TopicID: m.partition.TopicID,
		From: m.block.from, To: m.block.to, First: m.block.first,
	}
}

// flush announces the block and stores it.
func (m *Machine) flush() {
	b := &m.block
	if b.to <= b.from {
		m.startOver(Event{Err: fmt.Errorf("store [%d, %d): it is no range", b.from, b.to)})
		return
	}
	b.maybeStored = b.maybeStored || b.from < m.unsure
	m.takeResent(func() {
		if m.held.Rows == 0 {
			m.insertOrEnd()
			return
		}
		b.announced = m.at.Time
		m.commit(b.from, b.before, Plan{To: b.to, First: b.first, Shard: m.shard}, func(Event) { m.insertOrEnd() })
	})
}

// takeResent takes the records that say they may have been delivered before.
//
// After a crash the same question may get another answer: rows of the range that
// the dead owner stored are found and left out. So are all others before the
// range is inserted again, see keepMissing.
func (m *Machine) takeResent(then func()) {
	if m.held.Resent == 0 {
		then()
		return
	}
	m.persist(TakeResent{}, func(Event) { then() })
}

// commit makes offset, and the plan there, the position of the
// partition. epoch is that of the last record before offset.
func (m *Machine) commit(offset int64, epoch int32, plan Plan, then func(Event)) {
	c := Commit{Topic: m.partition.TopicID, Plan: plan}
	if m.unsure > offset {
		c.Unsure = m.unsure
	}
	m.persist(CommitOffset{Offset: offset, Epoch: epoch, Commit: c}, then)
}

// insertOrEnd inserts the block, whose plan is committed, if it has rows.
func (m *Machine) insertOrEnd() {
	m.block.rows = m.held.Rows + m.block.found
	if m.held.Rows == 0 {
		m.end()
		return
	}
	m.insert()
}

// insert sends the block, or looks up its rows first. Only the very first
// attempt of its very first owner is believed without a look. After any other,
// which rows are stored is asked and not concluded:
//
//   - An error proves nothing. A view that depends on the table may have failed
//     after the rows were in it, or the answer was lost.
//   - Success after an error proves nothing either. ClickHouse writes down the
//     token before the rows are in place, so a crash between the two leaves a
//     token without rows.
//   - A plan that was announced long ago proves nothing either. The program may have been
//     stopped in between, and whoever read the plan meanwhile has stored the range.
//     The lease rules that out as long as Kafka keeps its promise; the look costs
//     one query and does not rest on it.
func (m *Machine) insert() {
	b := &m.block
	if b.tried.IsZero() && !MayRepeat(b.announced, m.at.Time) {
		b.maybeStored = true
	}
	if !b.maybeStored || m.repeats() {
		m.send()
		return
	}
	tried := !m.block.tried.IsZero()
	m.keepMissing(m.retryInsert, func() {
		switch {
		case m.held.Rows > 0:
			m.send()
		case tried:
			m.viewFailed(errors.New("see the attempts before"))
			m.end()
		default:
			m.end()
		}
	})
}

// RepeatFor is how long a block that ClickHouse answered with an error is sent
// again under its token before its rows are looked up instead. Within it the
// table cannot have forgotten the token: it remembers at least ten thousand
// blocks (migrations), and the server has not been away. Sending the whole block
// again also fills the views that depend on the table, where one of them made
// the insert fail.
const RepeatFor = 30 * time.Second

// repeats reports whether the block may be sent again as it is.
func (m *Machine) repeats() bool {
	b := &m.block
	return !b.tried.IsZero() && b.answered && !m.at.ViewsFail && MayRepeat(b.tried, m.at.Time)
}

// MayRepeat reports whether less than RepeatFor has passed since a block was first
// tried.
func MayRepeat(tried, now time.Time) bool { return within(RepeatFor, tried, now) }

// within reports whether less than d has passed since a moment. Wall clock and
// monotonic clock must both say so: one stands still while a machine is suspended,
// and the other may be set.
func within(d time.Duration, then, now time.Time) bool {
	wall := now.Round(0).Sub(then.Round(0))
	return now.Sub(then) < d && 0 <= wall && wall < d
}

// send inserts the block as a whole.
func (m *Machine) send() {
	b := &m.block
	first := b.tried.IsZero()
	if first {
		b.tried = m.at.Time
	}
	switch {
	case b.token != "":
	case b.maybeStored && !b.planned:
		m.renewToken()
	default:
		b.token = m.blockRange().Token()
	}
	own := b.own
	b.own = false
	m.do(Insert{Token: b.token},
		func(e Event) {
			b.answered = false
			if e.Again || b.maybeStored && !own {
				b.maybeStored = true
				m.verify()
				return
			}
			m.note(ViewsWork{})
			m.end()
		},
		func(e Event) {
			e.Err = fmt.Errorf("insert %s: %w", b.token, e.Err)
			switch {
			case e.Outcome == Expired: // nothing was sent
				b.own = own
				if first {
					b.tried = time.Time{}
				}
				m.retryInsert(e)
			case m.divides(e):
				m.refused(e)
			default:
				b.maybeStored, b.answered = true, e.Outcome == Answered || e.Outcome == TooMuch
				m.retryInsert(e)
			}
		})
}

// renewToken gives the block a token that no other insert has.
func (m *Machine) renewToken() {
	m.block.token, m.block.own = m.blockRange().Token()+"/again-"+m.partition.Unique(), true
}

func (m *Machine) retryInsert(e Event) {
	m.retry("insert", e.Err, func(Event) { m.insert() })
}

// TooMuchEnough is how often ClickHouse must answer a block with an error that
// smaller or other blocks might not meet until the block is bisected for it.
const TooMuchEnough = 5

// divides reports whether the block is bisected after a failed insert: because
// ClickHouse refused values, or has answered several times with an error that is
// not known to depend on values. That may be a limit of memory that the block
// exceeds as a whole, or a function that an operator's default or constraint
// calls.
func (m *Machine) divides(e Event) bool {
	if e.Outcome == TooMuch {
		m.block.tooMuch++
	}
	return e.Outcome == Refused || e.Outcome == TooMuch && m.block.tooMuch >= TooMuchEnough
}

// refused bisects a block that ClickHouse does not take as a whole, unless its
// rows are stored all the same.
func (m *Machine) refused(e Event) {
	m.note(Bisecting{e.Err})
	m.block.maybeStored = true
	m.keepMissing(m.retryInsert, func() {
		if m.held.Rows == 0 {
			m.viewFailed(e.Err)
			m.end()
			return
		}
		m.block.tried = time.Time{} // from here on, some rows may be stored under tokens of their own
		m.bisect()
	})
}

// verify looks whether all rows are there that ClickHouse took. If not, it knows
// the token of rows that it has lost, and the missing ones need another token.
func (m *Machine) verify() {
	m.keepMissing(m.retryInsert, func() {
		if m.held.Rows == 0 {
			m.end()
			return
		}
		m.note(TokenWithoutRows{})
		m.renewToken()
		m.retryInsert(Event{Err: fmt.Errorf("insert %s: ClickHouse knows the token and lacks %d of the rows: a crash or a full disk came between the two",
			m.blockRange().Token(), m.held.Rows)})
	})
}

// keepMissing leaves only those rows in the block that are not stored. What was
// under way to ClickHouse for the partition ends before the look, and nothing
// new begins, so the answer is final.
func (m *Machine) keepMissing(failed func(Event), then func()) {
	b := &m.block
	rows := m.held.Rows
	anyShard := m.unsure > b.from
	kept := func(Event) {
		found := rows - m.held.Rows
		b.found += found
		if anyShard && b.tried.IsZero() { // not by us
			b.unsureFound += found
			m.unsure = max(m.unsure, m.logEnd) // nor may what follows be
		}
		b.tried = time.Time{} // another block than before
		m.note(RowsFound{Token: m.blockRange().Token(), Found: found, Missing: m.held.Rows})
		then()
	}
	m.do(Settle{}, func(Event) {
		m.persist(LookUp{AnyShard: anyShard}, func(e Event) {
			if len(e.Missing) == rows {
				then()
				return
			}
			if len(e.Missing) > 0 {
				m.rereads()
			}
			m.do(KeepMissing{}, kept, failed)
		})
	}, failed)
}

// rereads means that the next action reads the records of the block again. The log
// may have lost its end since, and got other records at the same offsets: then
// those are inserted, and others are passed over. So m.epoch stays that of the
// records that were judged. By it the next fetch notices the loss, or else the
// next owner, and what is new is read.
func (m *Machine) rereads() { m.elsewhere = true }

func (m *Machine) viewFailed(err error) { m.note(ViewFailed{Found: m.block.found, Err: err}) }

// end diverts what could not be stored and commits the end of the block.
func (m *Machine) end() {
	delete(m.failures, "insert")
	if m.held.Letters > 0 {
		m.persist(ProduceLetters{}, func(Event) { m.commitEnd() })
		return
	}
	m.commitEnd()
}

func (m *Machine) commitEnd() {
	m.commit(m.block.to, m.epoch, Plan{}, func(Event) {
		b := &m.block
		m.note(Stored{Rows: b.rows, UnsureFound: b.unsureFound, Refused: b.refused, From: b.from, To: b.to})
		m.refusedAt = -1
		m.drop()
		m.setShard(m.partition.ownShard())
		m.begin()
	})
}

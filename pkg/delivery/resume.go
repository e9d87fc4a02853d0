package delivery

import "fmt"

// place is where a partition is taken over.
type place struct {
	start, end int64 // of the log
	from       int64 // the committed offset, or what to go on from instead
	epoch      int32 // leader epoch of the last record before from; -1 when unknown
	unsure     int64 // records before it may be stored already
	plan       Plan
	none       bool // nothing was committed
	foreign    bool // none of our writers committed from
	otherTopic bool // from is an offset of another topic of the same name
}

// takeOver finds where the last owner stopped, and finishes its plan.
//
// A committed offset proves that everything before it is stored only if one of
// our writers committed it, in this log, and the log has not lost records since.
// Where that does not hold, the records in the log now are unsure: they are
// looked up by their keys before they are inserted.
func (m *Machine) takeOver(Event) {
	m.begun, m.elsewhere = m.at.Time, false
	m.drop()
	m.setShard(m.partition.ownShard())
	m.do(ReadPosition{}, m.readPosition, m.startOver)
}

// readPosition parses the metadata of the committed offset.
func (m *Machine) readPosition(e Event) {
	commit, ours, err := ParseCommit(e.Offset, e.Metadata)
	if err != nil {
		m.startOver(Event{Err: err}) // until an operator mends it
		return
	}
	id := m.partition.TopicID
	m.place = place{
		from: e.Offset, epoch: e.Epoch, unsure: commit.Unsure, plan: commit.Plan,
		none: e.Offset < 0, foreign: !ours, otherTopic: commit.Topic != "" && id != "" && commit.Topic != id,
	}
	m.do(ReadBounds{}, m.judgePosition, m.startOver)
}

// judgePosition decides whether the offset is a position in this log.
func (m *Machine) judgePosition(e Event) {
	p := &m.place
	p.start, p.end = e.Start, e.End
	switch {
	case p.none:
		m.doubt(DoubtNone, p.start, -1, p.end)
		m.rebuildWindow()
	case p.otherTopic:
		m.doubt(DoubtTopic, p.start, -1, p.end)
		m.rebuildWindow()
	case p.epoch < 0:
		m.judgeEpoch(Event{End: -1})
	default:
		m.do(ReadEpochEnd{p.epoch}, m.judgeEpoch, m.startOver)
	}
}

// judgeEpoch goes back to where the log differs from the one that was read: it
// has lost its end, and there may be other records by now.
func (m *Machine) judgeEpoch(e Event) {
	p, cut := &m.place, e.End
	switch {
	case cut >= p.start && cut < p.from:
		// The epoch says more of the record before the cut than none: when the log is
		// cut once more, the next fetch notices it.
		m.doubt(DoubtTruncated, cut, p.epoch, p.end)
	case cut >= 0 && cut < p.from:
		m.doubt(DoubtTruncated, p.start, -1, p.end)
	case p.from > p.end: // where the log was cut is unknown, so all of it may be new
		m.doubt(DoubtTruncated, p.start, -1, max(p.end, p.from))
	}
	if p.foreign {
		m.doubt(DoubtForeign, p.from, p.epoch, max(p.unsure, p.end))
	}
	if p.plan.To != 0 {
		m.settlePlan()
		return
	}
	m.rebuildWindow()
}

// doubt goes on from an offset without trusting anything about the rows after
// it. Where the log has nothing after it, there is nothing to report.
func (m *Machine) doubt(why Doubt, from int64, epoch int32, unsure int64) {
	p := &m.place
	p.from, p.epoch, p.unsure, p.plan = from, epoch, unsure, Plan{}
	m.note(Seek{from, epoch})
	if p.end > from || why == DoubtTruncated {
		m.note(Doubted{Why: why, From: from, Start: p.start, End: p.end})
	}
}

// settlePlan ends what the last owner may still have under way at the shard of
// its plan. That also matters when nothing is left of the range: its rows must
// be visible before copies of them are looked up.
func (m *Machine) settlePlan() {
	p := &m.place
	if p.plan.Shard >= m.partition.Shards {
		m.startOver(Event{Err: fmt.Errorf(
			"the range [%d, %d) was planned for shard %d, and may be stored there, but ClickHouse has %d: bring that shard back to its cluster",
			p.from, p.plan.To, p.plan.Shard, m.partition.Shards)})
		return
	}
	if p.plan.Shard >= 0 {
		m.setShard(p.plan.Shard)
	}
	m.persist(Settle{}, func(Event) {
		if p.plan.First == 0 || p.from < p.start || p.from >= p.end {
			m.judgePlan(Event{}) // there is nothing to compare
			return
		}
		m.do(ReadTime{p.from}, m.judgePlan, m.startOver)
	})
}

// judgePlan decides whether the log is still the one of the plan. A
// topic may be created again, and a log may lose its end and get another. The
// planned records are gone then, and the offsets of the range stand for others.
func (m *Machine) judgePlan(e Event) {
	p := &m.place
	same := e.First == 0 || e.First == p.plan.First
	if !same {
		m.note(PlanDropped{From: p.from, To: p.plan.To, PlannedFirst: p.plan.First, First: e.First})
	}
	if !same || p.plan.To > p.end {
		// The planned range cannot be formed again. Its remaining records are unsure.
		p.unsure, p.plan = max(p.unsure, p.plan.To), Plan{}
		m.setShard(m.partition.ownShard())
	}
	m.rebuildWindow()
}

// setShard makes the rows go to a shard.
func (m *Machine) setShard(shard int) {
	if m.shard != shard {
		m.shard = shard
		m.note(SetShard{shard})
	}
}

func (m *Machine) rebuildWindow() {
	m.do(RebuildWindow{Start: m.place.start, From: m.place.from}, m.goOn, m.startOver)
}

// goOn finishes the planned range, or begins to fetch.
func (m *Machine) goOn(e Event) {
	p := &m.place
	if p.epoch < 0 {
		p.epoch, m.elsewhere = e.Epoch, e.Epoch >= 0
	}
	m.next, m.epoch, m.unsure, m.logEnd = max(p.from, p.start), p.epoch, p.unsure, p.end
	m.note(TakenOver{From: p.from, PlannedTo: p.plan.To, Unsure: p.unsure, End: p.end})
	switch {
	case p.plan.To != 0:
		left := min(m.next, p.plan.To) // what lies before it has gone from the log
		m.do(TakeRange{From: left, To: p.plan.To}, m.finishPlan, m.startOver)
	case p.none && p.start == p.end:
		// From now on there is a position, before anything can be stored.
		m.commit(p.from, p.epoch, Plan{}, func(Event) { m.begin() })
	default:
		m.begin()
	}
}

// finishPlan stores the planned range as it was read again. Which of its rows are
// stored is looked up. So it does not matter how much of the range is left, or
// whether ClickHouse still knows its token.
func (m *Machine) finishPlan(e Event) {
	p := &m.place
	m.open(p.from, p.plan.First)
	m.block.to, m.block.planned, m.block.maybeStored = p.plan.To, true, true
	m.next = max(p.plan.To, p.start)
	if e.Epoch >= 0 {
		m.epoch = e.Epoch
	}
	m.elsewhere = true
	m.note(RangeResumed{})
	m.takeResent(m.insertOrEnd)
}

// begin starts to fetch.
func (m *Machine) begin() {
	if p := &m.place; p.from < p.start {
		m.note(RecordsLost{From: p.from, Start: p.start, End: p.end})
		p.from = p.start
	}
	m.fetch()
}

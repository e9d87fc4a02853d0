package delivery

import (
	"errors"
	"fmt"
	"time"
)

// bisection is the search for the refused rows of a block.
type bisection struct {
	todo     [][]int // pieces that are not stored yet; the next one is last
	refused  []RefusedRow
	accepted piece     // one that ClickHouse took; without rows while there is none
	since    time.Time // when it was first sent
	inARow   int       // single rows that were refused since ClickHouse took anything
	seen     int64     // Moment.Accepted at the last refusal
	second   bool      // the refused rows are tried again
}

// piece is some rows of the block, inserted as a block of their own.
type piece struct {
	token string
	rows  []int
}

// bisect stores the rows of the block that ClickHouse accepts, and diverts the
// others. None of the rows is stored, and nothing is under way, when it begins.
// After an error it is not known which are.
//
// A row is at fault only when the table refuses it, takes another after that,
// and refuses it once more. Otherwise the table is at fault, or was while
// somebody mended it: then nothing is diverted, and the block waits.
func (m *Machine) bisect() {
	m.rereads()
	m.do(Load{}, func(e Event) {
		if e.Rows != m.held.Rows {
			m.startOver(Event{Err: fmt.Errorf("read %s again: it has %d rows and had %d: the log has changed", m.blockRange().Token(), e.Rows, m.held.Rows)})
			return
		}
		m.bisection = bisection{todo: [][]int{spread(e.Rows)}}
		m.nextPiece()
	}, m.retryInsert)
}

// spread orders n rows so that neighbours come from far apart: a run of bad rows
// must not look like a table that refuses everything.
func spread(n int) []int {
	step := max(1, n*5/8)
	for gcd(step, n) != 1 {
		step++
	}
	rows := make([]int, n)
	for i := range rows {
		rows[i] = i * step % n
	}
	return rows
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// refusedEnough is how many single rows have to be refused in a row until it is
// doubted that the table takes anything.
const refusedEnough = 64

// nextPiece inserts the next piece.
func (m *Machine) nextPiece() {
	s := &m.bisection
	if len(s.todo) == 0 {
		m.judgeRefused()
		return
	}
	if s.inARow >= refusedEnough {
		m.tryOthers(func() { s.inARow = 0; m.nextPiece() })
		return
	}
	last := len(s.todo) - 1
	this := piece{m.blockRange().Token() + "/piece-" + m.partition.Unique(), s.todo[last]}
	s.todo = s.todo[:last]
	sent := m.at.Time
	m.do(Insert{Token: this.token, Rows: this.rows},
		func(Event) {
			s.accepted, s.since, s.inARow = this, sent, 0
			m.nextPiece()
		},
		func(refusal Event) {
			refusal.Err = fmt.Errorf("insert rows of %s: %w", m.blockRange().Token(), refusal.Err)
			if refusal.Outcome != Refused && (refusal.Outcome != TooMuch || m.block.tooMuch < TooMuchEnough) {
				m.retryInsert(refusal)
				return
			}
			m.persist(LookUp{Rows: this.rows}, func(e Event) { m.divide(this.rows, e.Missing, refusal.Err) })
		})
}

// divide halves a refused piece, of which the missing rows are not stored.
func (m *Machine) divide(rows, missing []int, err error) {
	s := &m.bisection
	switch {
	case len(missing) < len(rows): // they were in the table before something else refused them
		m.block.found += len(rows) - len(missing)
		m.viewFailed(err)
	case len(rows) == 1:
		s.seen = m.at.Accepted
		s.refused = append(s.refused, RefusedRow{rows[0], err})
		s.inARow++
		m.nextPiece()
		return
	}
	if middle := len(missing) / 2; middle > 0 {
		s.todo = append(s.todo, missing[middle:], missing[:middle])
	} else if len(missing) > 0 {
		s.todo = append(s.todo, missing)
	}
	m.nextPiece()
}

// judgeRefused tries the refused rows once more when the table takes others, and
// diverts those that it refuses again while it takes others.
func (m *Machine) judgeRefused() {
	s := &m.bisection
	if len(s.refused) == 0 {
		m.end()
		return
	}
	m.tryOthers(func() {
		if s.second {
			m.block.refused = len(s.refused)
			m.note(Divert{s.refused})
			m.held.Letters += len(s.refused) // the note adds them to the batch
			m.end()
			return
		}
		again := make([]int, len(s.refused))
		for i, r := range s.refused {
			again[i] = r.Row
		}
		s.todo, s.refused, s.inARow, s.second = append(s.todo, again), nil, 0, true
		m.nextPiece()
	})
}

// pieceFor is how long a piece that ClickHouse took may be sent again under its
// token: half the time for which the table remembers tokens at least. It is longer
// than RepeatFor, because bisecting takes its time.
const pieceFor = 5 * time.Minute

// tryOthers goes on when the table takes other rows than those that were refused
// last. A piece that it has taken is sent again under its token, so that it is
// checked as before and not stored twice. Where there is none, or the table may have
// forgotten its token, other partitions may have had more luck, also since the block
// was given up before.
func (m *Machine) tryOthers(then func()) {
	s := &m.bisection
	if len(s.accepted.rows) == 0 || !within(pieceFor, s.since, m.at.Time) {
		since := s.seen
		if m.refusedAt >= 0 {
			since = m.refusedAt
		}
		if m.at.Accepted > since {
			then()
			return
		}
		m.giveUp()
		return
	}
	m.do(Insert{Token: s.accepted.token, Rows: s.accepted.rows},
		func(Event) { then() },
		func(e Event) {
			if e.Outcome == Refused || e.Outcome == TooMuch {
				m.giveUp()
				return
			}
			e.Err = fmt.Errorf("insert rows of %s: %w", m.blockRange().Token(), e.Err)
			m.retryInsert(e)
		})
}

// errTable means that the table refuses everything.
var errTable = errors.New("the table takes nothing else either, so it is the table's trouble")

// giveUp forgets the block: its rows wait for others, of the records after them
// or of other partitions, which tell whether the table is at fault. The plan
// goes with it. What is stored of the range is looked up when it is read again.
func (m *Machine) giveUp() {
	b := &m.block
	err := fmt.Errorf("insert %s: single rows of it are refused, and %w: %w", m.blockRange().Token(), errTable, m.bisection.refused[0].Err)
	m.unsure, m.refusedAt = max(m.unsure, b.to), m.bisection.seen
	m.commit(b.from, b.before, Plan{}, func(Event) {
		m.drop()
		m.startOver(Event{Err: err})
	})
}

package delivery

import "time"

// Partition describes the partition of a [Machine].
type Partition struct {
	Topic  string
	Number int
	// TopicID is the id of the topic; empty where the brokers have none.
	TopicID string
	// Shards is how many shards ClickHouse has, at least 1.
	Shards int
	// Unique returns a text that no other call returns, for the tokens of inserts
	// that nothing else may share.
	Unique func() string
}

// ownShard is where the rows go while the number of shards stays.
func (p *Partition) ownShard() int { return p.Number % p.Shards }

// Machine makes the decisions of exactly-once delivery for one partition: where
// to go on, what to announce, when to insert, what to look up, which rows to
// divert, what to commit. It does nothing itself. Make it with [NewMachine], do
// the action that Start returns, pass its outcome to Step, do the action that
// Step returns, and so on until the action is [Stop].
//
// A Machine belongs to one goroutine.
type Machine struct {
	partition Partition
	at        Moment
	notes     []Note
	action    Action
	done      func(Event)    // what follows the action
	failed    func(Event)    // what follows when it ends otherwise
	failures  map[string]int // by operation: how often it has failed in a row

	// Where the partition is.
	place  place     // at which it was taken over
	begun  time.Time // when it was taken over
	shard  int       // where the rows go
	next   int64     // offset to fetch next
	epoch  int32     // leader epoch of the last record before next; -1 when unknown
	logEnd int64     // as far as the last fetch knew
	// elsewhere means that the last fetch did not end at next.
	elsewhere bool
	unsure    int64 // records before this offset may be stored already

	block     block
	held      Batch // what the caller's batch holds
	bisection bisection
	// refusedAt is Moment.Accepted when rows were refused and nothing else was
	// taken; if others were taken since, these rows are at fault. Negative
	// while there are none.
	refusedAt int64
}

// NewMachine returns a Machine for a partition that was just assigned.
func NewMachine(p Partition) *Machine {
	return &Machine{partition: p, failures: make(map[string]int), shard: p.ownShard(), refusedAt: -1}
}

// Shard is where the rows go at first.
func (m *Machine) Shard() int { return m.shard }

// Start returns the first action.
func (m *Machine) Start(at Moment) ([]Note, Action) {
	m.at = at
	m.takeOver(Event{})
	return m.notes, m.action
}

// Step takes the outcome of the last action, and returns the next one. Both
// results are valid until the next call.
func (m *Machine) Step(at Moment, e Event) ([]Note, Action) {
	m.at, m.notes, m.held = at, m.notes[:0], e.Batch
	switch {
	case at.Stopping && e.Outcome != OK:
		m.stop(nil) // nothing is tried again
	case e.Outcome == Fenced || e.Outcome == TopicChanged:
		m.stop(e.Err)
	case e.Outcome == LogChanged:
		m.startOver(e)
	case e.Outcome == OK:
		m.done(e)
	default:
		m.failed(e)
	}
	return m.notes, m.action
}

func (m *Machine) note(n Note) { m.notes = append(m.notes, n) }

// do asks for an action. While the partition is being given up, nothing begins
// but what ends the block under way.
func (m *Machine) do(a Action, done, failed func(Event)) {
	if m.at.Stopping && !graceful(a) {
		m.stop(nil)
		return
	}
	m.action, m.done, m.failed = a, done, failed
}

// persist asks for an action again and again until it succeeds.
func (m *Machine) persist(a Action, done func(Event)) {
	operation := Operation(a)
	m.do(a,
		func(e Event) {
			delete(m.failures, operation)
			done(e)
		},
		func(e Event) {
			m.retry(operation, e.Err, func(Event) { m.persist(a, done) })
		})
}

// retry waits for a while before an operation is tried again.
func (m *Machine) retry(operation string, err error, again func(Event)) {
	failures := m.failures[operation]
	m.failures[operation]++
	m.do(Wait{Operation: operation, Err: err, Attempt: failures + 1, Delay: backoff(failures)}, again, again)
}

// startOver takes the partition over again: only that can mend what has failed.
func (m *Machine) startOver(e Event) {
	follow := m.failures["follow"]
	if m.at.Time.Sub(m.begun) > MaxBackoff { // it went well for a while
		follow = 0
	}
	clear(m.failures)
	m.failures["follow"] = follow
	m.retry("follow", e.Err, m.takeOver)
}

func (m *Machine) stop(err error) { m.do(Stop{err}, nil, nil) }

// MaxBackoff is the longest pause between two attempts, and so the longest that
// a partition needs to notice that an engine is back.
const MaxBackoff = 5 * time.Second

// backoff doubles from 100 ms to MaxBackoff: short enough to notice a restarted
// server at once, long enough not to be what keeps it from starting.
func backoff(failures int) time.Duration {
	return min(100*time.Millisecond<<min(failures, 10), MaxBackoff)
}

package main

import (
	"fmt"
	"sync"
	"time"
)

// itemBits is how many low bits of a span's or flow's number count the items of
// one request; the bits above them are the request's number.
const itemBits = 12

// state is what is known about a request.
type state uint8

const (
	sending      state = iota // not acknowledged: its items may be stored, once
	acknowledged              // its items must be stored, once
	refused                   // for good: its items may be stored, once
)

// entry is what the ledger knows of one request.
type entry struct {
	state  state
	items  uint16
	sender uint8
	cycle  int16 // in which it was sent first
	seen   bool  // all its items were found in the table
	sent   time.Time
	acked  time.Time
}

// ledger is what was sent of one signal. It is safe for concurrent use.
type ledger struct {
	signal string

	mu       sync.Mutex
	entries  []entry // by number; the first is unused
	oldest   int     // every acknowledged entry before it was seen
	cycle    int16
	acked    int // items
	again    int // requests sent more than once
	refusals []string
}

func newLedger(signal string) *ledger {
	return &ledger{signal: signal, entries: make([]entry, 1), oldest: 1}
}

// begin returns the number of a new request.
func (l *ledger) begin(sender, items int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, entry{items: uint16(items), sender: uint8(sender), cycle: l.cycle, sent: time.Now()})
	return len(l.entries) - 1
}

// acknowledge records that a request was acknowledged at the given attempt.
func (l *ledger) acknowledge(number, attempt int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.entries[number]
	e.state, e.acked = acknowledged, time.Now()
	l.acked += int(e.items)
	if attempt > 0 {
		l.again++
	}
}

// refuse records that a request was refused for good, which nothing here should be.
func (l *ledger) refuse(number int, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[number].state = refused
	l.refusals = append(l.refusals, fmt.Sprintf("%s request %d: %s", l.signal, number, why))
}

// see records how many items of each request are stored, and returns an error if
// some are twice.
func (l *ledger) see(found map[uint64]counts) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	for number, n := range found {
		if number == 0 || number >= uint64(len(l.entries)) {
			return fmt.Errorf("%s request %d is stored and was never sent", l.signal, number)
		}
		e := &l.entries[number]
		if n.rows != n.ids || n.ids > uint64(e.items) {
			err = fmt.Errorf("%s request %d (cycle %d): %d rows of %d items are stored, and it has %d", l.signal, number, e.cycle, n.rows, n.ids, e.items)
		}
		if n.ids == uint64(e.items) {
			e.seen = true
		}
	}
	for l.oldest < len(l.entries) && (l.entries[l.oldest].seen || l.entries[l.oldest].state == refused) {
		l.oldest++
	}
	return err
}

// from is the number of the first request that may not have been seen.
func (l *ledger) from() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.oldest
}

// settled returns nil if all that was acknowledged before t was seen, and something
// that each sender has sent since.
func (l *ledger) settled(t time.Time, senders []int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	unseen, fresh := 0, make(map[int]bool)
	for i := l.oldest; i < len(l.entries); i++ {
		e := &l.entries[i]
		if e.state == acknowledged && !e.seen && e.acked.Before(t) {
			unseen++
		}
	}
	for i := len(l.entries) - 1; i > 0 && l.entries[i].sent.After(t); i-- {
		if l.entries[i].seen {
			fresh[int(l.entries[i].sender)] = true
		}
	}
	if unseen > 0 {
		return fmt.Errorf("%d acknowledged requests of %s are not stored", unseen, l.signal)
	}
	for _, s := range senders {
		if !fresh[s] {
			return fmt.Errorf("nothing is stored of what sender %d of %s sent since", s, l.signal)
		}
	}
	return nil
}

// drained returns nil if all that was acknowledged was seen.
func (l *ledger) drained() error { return l.settled(time.Now(), nil) }

func (l *ledger) setCycle(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cycle = int16(n)
}

// total returns the items acknowledged so far.
func (l *ledger) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// counts is what is stored of a request: rows, and distinct items among them.
type counts struct{ rows, ids uint64 }

// difference is what the ledger and the table do not agree on.
type difference struct {
	signal      string
	number      int
	entry       entry
	rows, ids   uint64
	lost, twice int
}

func (d difference) String() string {
	return fmt.Sprintf("%s request %d: state %d, sender %d, cycle %d, %d items, sent %s, acknowledged %s; %d rows of %d items stored: %d lost, %d twice",
		d.signal, d.number, d.entry.state, d.entry.sender, d.entry.cycle, d.entry.items,
		d.entry.sent.Format(time.StampMilli), d.entry.acked.Format(time.StampMilli), d.rows, d.ids, d.lost, d.twice)
}

// compare returns every request of which items are lost or stored twice.
func (l *ledger) compare(found map[uint64]counts) (differences []difference) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 1; i < len(l.entries); i++ {
		e, n := l.entries[i], found[uint64(i)]
		d := difference{signal: l.signal, number: i, entry: e, rows: n.rows, ids: n.ids, twice: int(n.rows - n.ids)}
		if e.state == acknowledged {
			d.lost = int(e.items) - int(n.ids)
		}
		if d.lost != 0 || d.twice != 0 {
			differences = append(differences, d)
		}
	}
	return differences
}

// byCycle returns the items that were acknowledged of the requests of each cycle.
func (l *ledger) byCycle() map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	items := make(map[int]int)
	for _, e := range l.entries {
		if e.state == acknowledged {
			items[int(e.cycle)] += int(e.items)
		}
	}
	return items
}

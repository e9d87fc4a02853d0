package delivery

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// walkRecord is one record of the small world. It has one item, and so at most one row.
type walkRecord struct {
	item   int8 // its key and its content
	resend bool // its sender says that it may have been delivered before
	bad    bool // ClickHouse refuses its row
}

// owner is a machine together with what pkg/writer holds for it. It is a value of
// the walk: nobody changes an owner once it has a number.
//
// The continuations of a machine are functions, which cannot be compared or
// copied. Where the machine wants a Fetch, to read its position, or to begin anew
// after a pause, they depend on its fields alone. An owner is therefore such a
// resting point, as a value, and the inputs since.
type owner struct {
	world   *walkWorld
	part    int
	resting *owner // as it was at its last resting point; nil at one
	since   []walkInput

	m                     Machine
	action                Action
	rows, resent, letters []int8 // offsets of records
	loaded                []int8 // what Load has read
	missing               []int  // of rows, by the last look-up
	aged                  bool   // such a time has passed since it sent anything
	inserted              bool   // the last insert succeeded: the next look-up is the second
	used                  uint8  // numbers of Unique that others use
}

// walkInput is what happens to an owner in one step. Fields that its action does
// not fill are zero.
type walkInput struct {
	start           bool
	outcome         Outcome
	stopping        bool  // the partition is being given up
	pause           bool  // so long passes before that ClickHouse may forget tokens
	accepted        bool  // ClickHouse has taken a block of this process since the last step
	viewsFail       bool  // see Moment
	again, due      bool  // see Event
	records         int8  // how many a fetch returns
	logEnd          int8  // end of the log
	stored          uint8 // items that ClickHouse has
	commit          int16 // number of the committed position
	used            uint8 // numbers of Unique that others use
	failAt          int8  // which of the local actions that follow fails; 0 for none
	blind, unlooked bool  // for broken worlds: the look-up finds all rows, or none
}

// walkResult is what a step tells the world.
type walkResult struct {
	owner               int32 // its number afterwards, 0 when it has stopped
	local               int8  // how many local actions followed
	took                uint8 // numbers that Unique returned
	dropped             bool
	viewsWork, viewFail bool
	diverted            uint8 // items whose letters Kafka has
}

var walkBegin = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func (w *walkWorld) newOwner(part int) *owner {
	o := &owner{world: w, part: part}
	o.m = *NewMachine(w.partition(o))
	return o
}

// partition describes the partition of an owner. Unique returns the least number
// that nobody has any use for, so that the world stays finite.
func (w *walkWorld) partition(o *owner) Partition {
	return Partition{Topic: "t", Number: o.part, TopicID: "id", Shards: 1, Unique: func() string {
		used := o.used | o.uniques()
		for n := range 8 {
			if used&(1<<n) == 0 {
				o.used |= 1 << n
				return strconv.Itoa(n)
			}
		}
		panic("too many tokens are in use")
	}}
}

// uniques returns the numbers in the tokens that the machine may send again.
func (o *owner) uniques() (used uint8) {
	for _, token := range []string{o.m.block.token, o.m.bisection.accepted.token} {
		if n, ok := uniqueOf(token); ok {
			used |= 1 << n
		}
	}
	if a, ok := o.action.(Insert); ok {
		if n, ok := uniqueOf(a.Token); ok {
			used |= 1 << n
		}
	}
	return used
}

// uniqueOf returns what Unique has added to a token.
func uniqueOf(token string) (n int, ok bool) {
	for _, word := range []string{"/again-", "/piece-"} {
		if _, text, found := strings.Cut(token, word); found {
			n, err := strconv.Atoi(text)
			return n, err == nil
		}
	}
	return 0, false
}

// clone returns a copy of an owner at a resting point, whose machine may go on.
func (o *owner) clone() *owner {
	c := *o
	c.m.partition = o.world.partition(&c)
	c.m.failures = maps.Clone(o.m.failures)
	c.m.notes = nil
	s := &c.m.bisection
	s.todo, s.refused = slices.Clone(s.todo), slices.Clone(s.refused)
	for i := range s.todo {
		s.todo[i] = slices.Clone(s.todo[i])
	}
	c.rows, c.resent, c.letters, c.loaded = slices.Clone(o.rows), slices.Clone(o.resent), slices.Clone(o.letters), slices.Clone(o.loaded)
	m := &c.m
	switch a := o.action.(type) {
	case ReadPosition:
		m.do(a, m.readPosition, m.startOver)
	case Fetch:
		m.do(a, m.fetched, m.notFetched)
	case Wait:
		if a.Operation == "insert" {
			again := func(Event) { m.insert() }
			m.do(a, again, again)
		}
	}
	return &c
}

// rests reports whether the machine's continuations follow from its action.
func (o *owner) rests() bool {
	switch a := o.action.(type) {
	case ReadPosition, Fetch:
		return true
	case Wait:
		return a.Operation == "insert"
	}
	return false
}

// settle makes a resting point of an owner: moments and counters become what they
// are to the machine, which only compares them.
func (o *owner) settle() {
	m := &o.m
	clear(m.failures)
	stale := !m.block.tried.IsZero() && !MayRepeat(m.block.tried, m.at.Time)
	if !m.block.tried.IsZero() {
		m.block.tried = walkBegin
		if stale {
			m.block.tried = walkBegin.Add(-walkPause)
		}
	}
	if !m.block.announced.IsZero() {
		stale := !MayRepeat(m.block.announced, m.at.Time)
		m.block.announced = walkBegin
		if stale {
			m.block.announced = walkBegin.Add(-walkPause)
		}
	}
	if s := &m.bisection; len(s.accepted.rows) > 0 {
		// After a pause no piece that was accepted before is sent again.
		stale := !within(pieceFor, s.since, m.at.Time)
		s.since = walkBegin
		if stale {
			s.since = walkBegin.Add(-walkPause)
		}
	}
	m.begun, m.at.Time = walkBegin, walkBegin
	const now = 10
	ago := func(then int64) int64 { return now - min(m.at.Accepted-then, 1) }
	if m.refusedAt >= 0 {
		m.refusedAt = ago(m.refusedAt)
	}
	m.bisection.seen = ago(m.bisection.seen)
	m.at.Accepted = now
	// These serve notes only.
	m.block.rows, m.block.found, m.block.unsureFound, m.block.refused = 0, 0, 0, 0
	o.resting, o.since, o.used = nil, nil, 0
	o.aged = o.aged && (!m.block.tried.IsZero() || len(m.bisection.accepted.rows) > 0)
}

const walkPause = pieceFor + 10*time.Second

// key tells owners apart.
func (o *owner) key() string {
	rest := o
	if o.resting != nil {
		rest = o.resting
	}
	m := &rest.m
	b, s := &m.block, &m.bisection
	refused := make([]int, len(s.refused))
	for i, r := range s.refused {
		refused[i] = r.Row
	}
	action := fmt.Sprintf("%T", rest.action)
	return fmt.Sprint(rest.part, action, m.place, m.next, m.epoch, m.logEnd, m.elsewhere, m.unsure, m.held, m.refusedAt, m.at.ViewsFail, m.at.Stopping,
		b.open, b.from, b.to, b.before, b.first, b.maybeStored, b.planned, b.tried.IsZero() || b.tried.Equal(walkBegin), b.tried.IsZero(), b.announced.Equal(walkBegin), b.token, b.own, b.answered, b.tooMuch,
		s.todo, refused, s.accepted, s.since.Equal(walkBegin), s.inARow, s.seen, s.second,
		rest.rows, rest.resent, rest.letters, rest.loaded, rest.missing, rest.aged, rest.inserted, o.since)
}

// step returns the owner after an input.
func (o *owner) step(in walkInput) (*owner, walkResult) {
	rest := o
	if o.resting != nil {
		rest = o.resting
	}
	next := rest.clone()
	var result walkResult
	for _, earlier := range o.since {
		next.take(earlier, &walkResult{})
	}
	next.take(in, &result)
	if next.rests() {
		next.settle()
		return next, result
	}
	if in.outcome == Failed && !in.pause && reflect.DeepEqual(next.action, o.action) {
		return o, result // it will be tried again
	}
	if result.took == 0 {
		in.used = 0 // nobody asked
	}
	next.resting = rest
	next.since = append(slices.Clone(o.since), in)
	return next, result
}

// errWalk is the cause of every failure.
var errWalk = errors.New("failed")

// take passes one input to the machine, and does the local actions that follow:
// those that nothing else in the world can change or see.
func (o *owner) take(in walkInput, result *walkResult) {
	o.used = in.used
	defer func(before uint8) { result.took = o.used &^ before }(o.used)
	m := &o.m
	at := m.at
	at.Stopping, at.ViewsFail = in.stopping, in.viewsFail
	if at.Time.IsZero() {
		at.Time = walkBegin
	}
	if in.pause {
		at.Time, o.aged = at.Time.Add(walkPause), true
	}
	if in.accepted {
		at.Accepted++
	}
	if in.start {
		notes, action := m.Start(at)
		o.heed(notes, result)
		o.action = action
	} else {
		o.pass(at, o.event(in, result), result)
	}
	for {
		if !o.local(in.logEnd) {
			return
		}
		e := Event{Epoch: -1}
		if mayFail(o.action) {
			result.local++
			if result.local == in.failAt {
				e.Outcome = Failed
			}
		}
		if e.Outcome == OK {
			e = o.perform(in.logEnd)
		}
		o.pass(at, e, result)
	}
}

func (o *owner) pass(at Moment, e Event, result *walkResult) {
	if e.Outcome != OK {
		e.Err = errWalk
	}
	e.Batch = Batch{Rows: len(o.rows), Resent: len(o.resent), Letters: len(o.letters)}
	notes, action := o.m.Step(at, e)
	o.heed(notes, result)
	o.action = action
}

func (o *owner) heed(notes []Note, result *walkResult) {
	for _, note := range notes {
		switch n := note.(type) {
		case Drop:
			o.rows, o.resent, o.letters, o.loaded, o.missing = nil, nil, nil, nil, nil
			o.inserted, result.dropped = false, true
		case Divert:
			for _, r := range n.Refused {
				o.letters = append(o.letters, o.loaded[r.Row])
			}
		case ViewsWork:
			result.viewsWork, result.viewFail = true, false
		case ViewFailed:
			result.viewsWork, result.viewFail = false, true
		}
	}
}

// local reports whether the machine's action is one that nothing else in the
// world can change or see.
func (o *owner) local(logEnd int8) bool {
	switch a := o.action.(type) {
	case ReadBounds:
		return int(logEnd) == len(o.world.logs[o.part]) // else it matters when it is read
	case ReadEpochEnd, ReadTime, RebuildWindow, TakeRange, KeepMissing, Load:
		return true
	case Wait:
		return a.Operation != "insert" // where the walk looks whether time has passed
	}
	return false
}

// mayFail reports whether the failure of a local action leads anywhere new.
func mayFail(a Action) bool {
	switch a.(type) {
	case TakeRange, KeepMissing, Load:
		return true
	}
	return false
}

// perform does a local action.
func (o *owner) perform(logEnd int8) Event {
	e := Event{Epoch: -1}
	switch a := o.action.(type) {
	case ReadBounds:
		e.End = int64(logEnd)
	case ReadEpochEnd:
		e.End = int64(logEnd)
	case ReadTime:
		e.First = walkTime(a.Offset)
	case RebuildWindow:
		if a.From > 0 {
			e.Epoch = 0
		}
	case TakeRange:
		e.Epoch = 0
		o.takeRecords(a.From, a.To)
	case KeepMissing:
		var kept []int8
		for _, i := range o.missing {
			kept = append(kept, o.rows[i])
		}
		o.rows, o.missing = kept, nil
	case Load:
		o.loaded, e.Rows = slices.Clone(o.rows), len(o.rows)
	}
	return e
}

func walkTime(offset int64) int64 { return 1000 + offset }

// takeRecords takes the records of [from, to) as the writer does.
func (o *owner) takeRecords(from, to int64) {
	for offset := from; offset < to; offset++ {
		switch r := o.world.logs[o.part][offset]; {
		case r.resend:
			o.resent = append(o.resent, int8(offset))
		case !o.world.duplicate(o.part, offset):
			o.rows = append(o.rows, int8(offset))
		}
	}
}

func (o *owner) item(offset int8) int8 { return o.world.logs[o.part][offset].item }

// event is the outcome of the action that the input tells.
func (o *owner) event(in walkInput, result *walkResult) Event {
	e := Event{Outcome: in.outcome, Epoch: -1, Again: in.again, Due: in.due, End: int64(in.logEnd)}
	if in.outcome != OK {
		o.inserted = false
		return e
	}
	switch a := o.action.(type) {
	case ReadPosition:
		p := o.world.positions[in.commit]
		e.Offset, e.Epoch, e.Metadata = p.offset, p.epoch, p.metadata
	case Fetch:
		e.Offset, e.Next = -1, a.Offset
		if in.records > 0 {
			e.Offset, e.First, e.Next, e.Epoch = a.Offset, walkTime(a.Offset), a.Offset+int64(in.records), 0
			o.takeRecords(a.Offset, e.Next)
		}
	case TakeResent:
		have := in.stored
		for _, offset := range o.rows {
			have |= 1 << o.item(offset)
		}
		for _, offset := range o.resent {
			if have&(1<<o.item(offset)) == 0 {
				o.rows = append(o.rows, offset)
			}
			have |= 1 << o.item(offset)
		}
		o.resent = nil
	case LookUp:
		rows, from := a.Rows, o.loaded
		if rows == nil {
			from = o.rows
			for i := range o.rows {
				rows = append(rows, i)
			}
		}
		o.missing = nil
		for _, i := range rows {
			found := in.stored&(1<<o.item(from[i])) != 0
			if in.blind && o.inserted {
				found = true
			}
			if !found || in.unlooked {
				o.missing = append(o.missing, i)
			}
		}
		e.Missing = o.missing
		o.inserted = false
	case Insert:
		o.aged, o.inserted = false, o.world.broken == "no second look-up"
	case ProduceLetters:
		for _, offset := range o.letters {
			result.diverted |= 1 << o.item(offset)
		}
	}
	return e
}

// sends returns the items whose rows an Insert carries.
func (o *owner) sends(a Insert) (items uint8) {
	from := o.rows
	if a.Rows != nil {
		from = nil
		for _, i := range a.Rows {
			from = append(from, o.loaded[i])
		}
	}
	for _, offset := range from {
		items |= 1 << o.item(offset)
	}
	return items
}

// young reports whether the machine may trust that ClickHouse knows a token.
func (o *owner) young() bool {
	return !o.aged && (!o.m.block.tried.IsZero() || len(o.m.bisection.accepted.rows) > 0)
}

package delivery

import (
	"fmt"
	"slices"
	"strings"
)

// The world of the walk: Kafka's log and positions, ClickHouse's rows, tokens and
// INSERTs under way, and of each partition at most two owners, of which one may
// not know yet that its lease has ended.
const (
	maxParts   = 2
	maxInserts = 3
)

// Which owner of a partition.
const (
	current = 0 // has the lease
	former  = 1 // lost it, and may not know
)

// walkState is one state of the world. It is comparable.
type walkState struct {
	stored    [4]uint8 // rows by item
	diverted  uint8    // items in dead letters
	tokens    [2]uint64
	position  [maxParts]int16 // number of what the group has committed
	late      [maxParts]int16 // number of a commit that Kafka may still execute; only in a broken world
	logEnd    [maxParts]int8
	owners    [maxParts][2]walkClaim
	inserts   [maxInserts]walkInsert
	viewsFail [2]bool // by process
	faults    int8    // how many more may come
}

// walkClaim is an owner of a partition.
type walkClaim struct {
	owner    int32 // its number, 0 for none
	process  int8
	stopping bool
	alone    bool // its next insert goes alone
	accepted bool // since its last step
	waits    bool // for its insert
}

// walkInsert is an INSERT under way in ClickHouse.
type walkInsert struct {
	token   int16 // its number, 0 for none
	items   uint8
	parts   uint8
	clients [maxParts]int8 // 0 when the answer goes nowhere, or else 1 + which owner waits
	again   bool           // not the first attempt
}

type walkPosition struct {
	offset   int64
	epoch    int32
	metadata string
}

type walkToken struct {
	name    string
	uniques [maxParts]uint8 // numbers in it
}

type walkKey struct {
	owner int32
	part  int8
	in    walkInput
}

// walkWorld holds what all states share.
type walkWorld struct {
	logs    [][]walkRecord
	before  []int8 // items that may be stored already, of records that have gone
	growing bool   // the last record of the first partition comes later
	faults  int8
	broken  string // what is broken on purpose
	telling bool   // steps are told in words

	owners    []*owner // by number
	numbers   map[string]int32
	steps     map[walkKey]walkResult
	positions []walkPosition
	tokens    []walkToken
}

func (w *walkWorld) duplicate(part int, offset int64) bool {
	for _, earlier := range w.logs[part][:offset] {
		if earlier.item == w.logs[part][offset].item {
			return true
		}
	}
	return false
}

func (w *walkWorld) number(o *owner) int32 {
	key := o.key()
	n, ok := w.numbers[key]
	if !ok {
		n = int32(len(w.owners))
		w.numbers[key] = n
		w.owners = append(w.owners, o)
	}
	return n
}

func intern[T comparable](all *[]T, v T) int16 {
	if i := slices.Index(*all, v); i >= 0 {
		return int16(i)
	}
	*all = append(*all, v)
	return int16(len(*all) - 1)
}

// begin returns the states in which the world may begin.
func (w *walkWorld) begin() []walkState {
	w.owners, w.numbers, w.steps = []*owner{nil}, map[string]int32{}, map[walkKey]walkResult{}
	w.positions, w.tokens = []walkPosition{{offset: -1, epoch: -1}}, []walkToken{{}}
	var s walkState
	s.faults = w.faults
	for p, log := range w.logs {
		s.logEnd[p] = int8(len(log))
		if w.growing && p == 0 {
			s.logEnd[p]--
		}
		// The group has a position of ours at the beginning of what is left to read.
		s.position[p] = intern(&w.positions, walkPosition{0, -1, Commit{Topic: "id"}.Metadata(0)})
	}
	states := []walkState{s}
	for _, item := range w.before {
		s.stored[item] = 1
		states = append(states, s)
	}
	return states
}

// fault is what a state costs that comes from a fault; ok is false when there may be no more.
func (s *walkState) fault() (t walkState, ok bool) {
	t = *s
	t.faults--
	return t, s.faults > 0
}

// step passes an input to an owner.
func (w *walkWorld) step(s *walkState, p, which int, in walkInput) walkResult {
	c := &s.owners[p][which]
	in.stopping, in.logEnd, in.viewsFail = c.stopping, s.logEnd[p], s.viewsFail[c.process]
	in.accepted, c.accepted = c.accepted, false
	in.used = w.used(s, p, 1-which)
	key := walkKey{c.owner, int8(p), in}
	result, ok := w.steps[key]
	if !ok {
		var o *owner
		if in.start {
			o, result = w.newOwner(p).step(in)
		} else {
			o, result = w.owners[c.owner].step(in)
		}
		if _, stopped := o.action.(Stop); !stopped {
			result.owner = w.number(o)
		}
		w.steps[key] = result
	}
	c.owner = result.owner
	if result.owner == 0 {
		w.gone(s, p, which)
	}
	for number, token := range w.tokens { // whoever had that number has no use for it any more
		if token.uniques[p]&result.took != 0 {
			s.tokens[number/64] &^= 1 << (number % 64)
		}
	}
	if result.dropped {
		c.alone = false
	}
	if result.viewsWork || result.viewFail {
		s.viewsFail[c.process] = result.viewFail
	}
	s.diverted |= result.diverted
	return result
}

// used returns the numbers of Unique that anybody but one owner has a use for.
func (w *walkWorld) used(s *walkState, p, other int) (used uint8) {
	for _, in := range s.inserts {
		used |= w.tokens[in.token].uniques[p]
	}
	if c := s.owners[p][other]; c.owner != 0 {
		used |= w.owners[c.owner].uniques()
	}
	return used
}

// gone removes an owner. Its INSERT goes on.
func (w *walkWorld) gone(s *walkState, p, which int) {
	s.owners[p][which] = walkClaim{process: s.owners[p][which].process}
	for i := range s.inserts {
		if s.inserts[i].clients[p] == int8(1+which) {
			s.inserts[i].clients[p] = 0
		}
	}
}

// answer ends an INSERT, and passes the outcome to who waits for it. The outcome
// of joined blocks is as the gatherer of pkg/writer tells it.
func (w *walkWorld) answer(s *walkState, i int, outcome Outcome) {
	in := s.inserts[i]
	s.inserts[i] = walkInsert{}
	if outcome == OK {
		for p, client := range in.clients {
			if client == 0 {
				continue
			}
			w.accept(s, s.owners[p][client-1].process)
			break
		}
	}
	joined := in.joined()
	for p, client := range in.clients {
		if client == 0 {
			continue
		}
		c := &s.owners[p][client-1]
		c.waits = false
		to := outcome
		switch {
		case joined:
			c.alone = outcome == Refused
			if outcome != OK {
				to = Failed
			}
		case w.owners[c.owner].action.(Insert).Rows == nil:
			c.alone = outcome == Refused || outcome == Answered
		}
		w.step(s, p, int(client-1), walkInput{outcome: to, again: in.again && outcome == OK})
	}
}

// joined reports whether the rows are of several partitions.
func (in *walkInsert) joined() bool { return in.parts&(in.parts-1) != 0 }

// accept counts a block of a process.
func (w *walkWorld) accept(s *walkState, process int8) {
	for p := range s.owners {
		for which := range s.owners[p] {
			c := &s.owners[p][which]
			if c.owner == 0 || c.process != process {
				continue
			}
			if m := &w.owners[c.owner].m; m.refusedAt >= 0 || len(m.bisection.refused) > 0 { // else nobody asks
				c.accepted = true
			}
		}
	}
}

func (w *walkWorld) refuses(items uint8) bool {
	for _, log := range w.logs {
		for _, r := range log {
			if r.bad && items&(1<<r.item) != 0 {
				return true
			}
		}
	}
	return false
}

func (s *walkState) knows(token int16) bool { return s.tokens[token/64]&(1<<(token%64)) != 0 }

func (s *walkState) remember(token int16) { s.tokens[token/64] |= 1 << (token % 64) }

func (s *walkState) store(items uint8) {
	for i := range s.stored {
		if items&(1<<i) != 0 {
			s.stored[i]++
		}
	}
}

func (s *walkState) have() (items uint8) {
	for i, n := range s.stored {
		if n > 0 {
			items |= 1 << i
		}
	}
	return items
}

// tokenOf numbers the token of an INSERT, as the broken world has it.
func (w *walkWorld) tokenOf(names ...string) int16 {
	var t walkToken
	for i, name := range names {
		if w.broken == "token reused" {
			name, _, _ = strings.Cut(name, "/again-")
			names[i] = name
		}
		if n, ok := uniqueOf(name); ok {
			t.uniques[name[len("t/")]-'0'] |= 1 << n // the partition
		}
	}
	t.name = strings.Join(names, " and ")
	n := intern(&w.tokens, t)
	if n >= 128 {
		panic("too many tokens")
	}
	return n
}

// execute makes a commit the position of the partition.
func (w *walkWorld) execute(s *walkState, p int, position int16) { s.position[p] = position }

func (w *walkWorld) commitOf(o *owner, a CommitOffset) int16 {
	c := a.Commit
	if w.broken == "committed before the insert" && c.Plan.To != 0 {
		a.Offset, c.Plan = c.Plan.To, Plan{}
	}
	if w.broken == "no plan" {
		c.Plan = Plan{}
	}
	c.Plan.Joined = c.Plan.To != 0
	return intern(&w.positions, walkPosition{a.Offset, a.Epoch, c.Metadata(a.Offset)})
}

// next calls yield for every state that may follow. Progress is what happens
// without a fault.
func (w *walkWorld) next(s *walkState, yield func(t walkState, progress bool, text func() string)) {
	private := w.private(s)
	emit := func(t walkState, progress bool, format string, args ...any) {
		w.canonical(&t)
		yield(t, progress, func() string { return fmt.Sprintf(format, args...) })
	}
	if private >= 0 {
		all := emit
		emit = func(t walkState, progress bool, format string, args ...any) {
			if !progress {
				all(t, progress, format, args...)
			}
		}
		if s.owners[private][current].owner == 0 {
			w.start(s, private, all)
		} else {
			w.nextOf(s, private, current, all)
		}
	}
	if end := int8(len(w.logs[0])); s.logEnd[0] < end {
		t := *s
		t.logEnd[0]++
		emit(t, true, "partition 0 gets record %d", end-1)
	}
	for p := range w.logs {
		for which := range s.owners[p] {
			if s.owners[p][which].owner != 0 && (p != private || which == former) {
				w.nextOf(s, p, which, emit)
			}
		}
		w.owned(s, p, emit)
	}
	w.joinedSend(s, emit)
	for process := range int8(2) {
		w.crash(s, process, emit)
	}
	for i := range s.inserts {
		if s.inserts[i].token != 0 {
			w.nextInsert(s, i, emit)
		}
	}
	w.forget(s, emit)
}

// private returns a partition whose owner is about to do what no other partition
// can see or change; -1 when there is none. What the others do may as well come
// after it, so nothing but faults is tried before: the order makes no difference.
func (w *walkWorld) private(s *walkState) int {
	if len(w.logs) < 2 {
		return -1
	}
	for p := range w.logs {
		c := s.owners[p][current]
		if c.owner == 0 {
			return p
		}
		if c.waits {
			continue
		}
		o := w.owners[c.owner]
		switch a := o.action.(type) {
		case ReadPosition, CommitOffset, ProduceLetters, Wait:
			return p
		case Fetch:
			if c.stopping || a.Offset < int64(s.logEnd[p]) || o.m.block.open {
				return p
			}
		}
	}
	return -1
}

type walkEmit func(t walkState, progress bool, format string, args ...any)

// start gives a partition that nobody owns to a process: to the one that has the
// other partition, unless it is the one that lost it.
func (w *walkWorld) start(s *walkState, p int, emit walkEmit) {
	t := *s
	process := 1 - s.owners[p][current].process
	for other := range w.logs {
		if s.owners[other][current].owner != 0 {
			process = s.owners[other][current].process
		}
	}
	if t.owners[p][former].owner != 0 {
		process = 1 - t.owners[p][former].process
	}
	t.owners[p][current] = walkClaim{process: process}
	w.step(&t, p, current, walkInput{start: true})
	emit(t, true, "partition %d: process %d takes it over", p, process)
}

// owned lets partitions change hands.
func (w *walkWorld) owned(s *walkState, p int, emit walkEmit) {
	c := s.owners[p][current]
	if c.owner == 0 {
		w.start(s, p, emit)
	}
	if s.owners[p][former].owner != 0 {
		t := *s
		w.gone(&t, p, former)
		emit(t, true, "partition %d: the former owner hears that it lost the lease, and stops", p)
	}
	// The lease ends while its owner does not know.
	lose := func(t *walkState, p int) {
		c := t.owners[p][current]
		t.owners[p][former], t.owners[p][current] = c, walkClaim{}
		for i := range t.inserts {
			if t.inserts[i].clients[p] == 1+current {
				t.inserts[i].clients[p] = 1 + former
			}
		}
		t.owners[p][current] = walkClaim{process: 1 - c.process}
		w.step(t, p, current, walkInput{start: true})
	}
	if t, ok := s.fault(); ok && c.owner != 0 && s.owners[p][former].owner == 0 {
		lose(&t, p)
		emit(t, false, "partition %d: process %d is stopped, its lease ends, and process %d takes the partition over; the first goes on", p, c.process, 1-c.process)
		if both := s.owners[1-p]; p == 0 && both[current].owner != 0 && both[current].process == c.process && both[former].owner == 0 {
			lose(&t, 1)
			emit(t, false, "process %d is stopped, its leases end, and process %d takes both partitions over; the first goes on", c.process, 1-c.process)
		}
	}
	if t, ok := s.fault(); ok && c.owner != 0 && !c.stopping {
		t.owners[p][current].stopping = true
		emit(t, false, "partition %d: process %d is told to give it up", p, c.process)
	}
	if t, ok := s.fault(); ok && s.position[p] != 0 {
		t.position[p] = 0
		if w.broken == "offsets reset" {
			t.position[p] = intern(&w.positions, walkPosition{0, -1, Commit{Topic: "id"}.Metadata(0)})
		}
		emit(t, false, "partition %d: the group's offset is deleted", p)
	}
	if s.late[p] != 0 {
		t := *s
		t.position[p], t.late[p] = s.late[p], 0
		emit(t, true, "partition %d: Kafka executes the late commit: %s", p, w.positions[s.late[p]].metadata)
	}
}

// crash ends a process.
func (w *walkWorld) crash(s *walkState, process int8, emit walkEmit) {
	t, ok := s.fault()
	any := false
	for p := range w.logs {
		for which := range s.owners[p] {
			if c := s.owners[p][which]; c.owner != 0 && c.process == process {
				w.gone(&t, p, which)
				any = true
			}
		}
	}
	if t.viewsFail[process] = false; ok && any {
		emit(t, false, "process %d is killed", process)
	}
}

// forget lets ClickHouse forget its tokens.
func (w *walkWorld) forget(s *walkState, emit walkEmit) {
	if t, ok := s.fault(); ok && w.mayForget(s) {
		t.tokens = [2]uint64{}
		emit(t, false, "ClickHouse forgets the tokens")
	}
}

// mayForget reports whether nobody is young enough to rest on the tokens. No
// INSERT runs for that long.
func (w *walkWorld) mayForget(s *walkState) bool {
	if s.tokens == [2]uint64{} {
		return false
	}
	if w.broken == "short window" {
		return true
	}
	for p := range s.owners {
		for _, c := range s.owners[p] {
			if c.owner != 0 && w.owners[c.owner].young() {
				return false
			}
		}
	}
	return s.inserts == [maxInserts]walkInsert{}
}

// pause lets so much time pass before a step that ClickHouse may forget the tokens.
func (w *walkWorld) pause(s *walkState, p, which int, in walkInput, who string, emit walkEmit) {
	t, ok := s.fault()
	if !ok || w.broken == "short window" || !w.owners[s.owners[p][which].owner].young() {
		return
	}
	in.pause = true
	w.step(&t, p, which, in)
	emit(t, false, "%s: goes on, after more than %s", who, pieceFor)
	if w.mayForget(&t) {
		t.tokens = [2]uint64{}
		emit(t, false, "%s: goes on, after more than %s, in which ClickHouse has forgotten the tokens", who, pieceFor)
	}
}

// nextOf lets one owner do its action.
func (w *walkWorld) nextOf(s *walkState, p, which int, emit walkEmit) {
	c := s.owners[p][which]
	o := w.owners[c.owner]
	if c.waits {
		return
	}
	who := ""
	if w.telling {
		who = fmt.Sprintf("partition %d, process %d", p, c.process)
	}
	// try does a step that costs nothing, and the same with a failure of what follows.
	try := func(t walkState, in walkInput, format string, args ...any) {
		u := t
		result := w.step(&t, p, which, in)
		emit(t, true, who+": "+format, args...)
		for n := int8(1); n <= result.local; n++ {
			if v, ok := u.fault(); ok {
				in.failAt = n
				w.step(&v, p, which, in)
				emit(v, false, who+": "+format+"; what follows fails", args...)
			}
		}
	}
	fail := func(outcome Outcome, format string, args ...any) {
		if t, ok := s.fault(); ok {
			if w.step(&t, p, which, walkInput{outcome: outcome}); t.owners == s.owners {
				return // it will only be tried again
			}
			emit(t, false, who+": "+format, args...)
		}
	}
	switch a := o.action.(type) {
	case ReadPosition:
		try(*s, walkInput{commit: s.position[p]}, "reads the position: offset %d, %q", w.positions[s.position[p]].offset, w.positions[s.position[p]].metadata)
	case ReadBounds:
		try(*s, walkInput{}, "reads the bounds of the log")
	case Wait:
		try(*s, walkInput{}, "tries again to %s", a.Operation)
		w.pause(s, p, which, walkInput{}, who, emit)
	case Fetch:
		if c.stopping {
			t := *s
			w.step(&t, p, which, walkInput{outcome: Failed})
			emit(t, true, "%s: gives up", who)
			return
		}
		left := s.logEnd[p] - int8(a.Offset)
		more := int(s.logEnd[p]) < len(w.logs[p])
		if left == 0 && o.m.block.open {
			try(*s, walkInput{due: true}, "nothing comes, and the batch is due")
		}
		for n := int8(1); n <= left; n++ {
			try(*s, walkInput{records: n, due: true}, "fetches %d records from %d on, and the batch is due", n, a.Offset)
			if n < left || more {
				try(*s, walkInput{records: n}, "fetches %d records from %d on", n, a.Offset)
			}
		}
	case TakeResent:
		try(*s, walkInput{stored: s.have() & w.itemsIn(p)}, "looks up what was resent")
		fail(Failed, "a look-up fails")
	case Settle:
		t := *s
		w.settle(&t, p, which)
		if t.owners[p][which].owner == c.owner {
			try(t, walkInput{}, "ends the INSERTs under way")
		}
		fail(Failed, "INSERTs under way cannot be ended")
	case LookUp:
		in := walkInput{stored: s.have() & w.itemsIn(p), blind: w.broken == "no second look-up", unlooked: w.broken == "no look-up"}
		try(*s, in, "looks rows up")
		w.pause(s, p, which, in, who, emit)
		fail(Failed, "a look-up fails")
	case CommitOffset:
		w.nextCommit(s, p, which, a, who, try, fail, emit)
	case ProduceLetters:
		try(*s, walkInput{}, "produces dead letters")
		if t, ok := s.fault(); ok {
			t.diverted |= w.itemsOf(o, o.letters)
			w.step(&t, p, which, walkInput{outcome: Failed})
			emit(t, false, "%s: produces dead letters, and the answer is lost", who)
		}
	case Insert:
		if which == former && w.broken != "lease ignored" {
			try(*s, walkInput{outcome: Expired}, "sends nothing, because the lease has ended")
			return
		}
		t := *s
		if w.send(&t, []int{p}, which) {
			emit(t, true, "%s: sends the rows %s under %s", who, w.itemsText(o.sends(a)), w.tokens[w.tokenOf(a.Token)].name)
		}
	default:
		panic(fmt.Sprintf("action %T", a))
	}
}

func (w *walkWorld) itemsIn(p int) (items uint8) {
	for _, r := range w.logs[p] {
		items |= 1 << r.item
	}
	return items
}

func (w *walkWorld) itemsOf(o *owner, offsets []int8) (items uint8) {
	for _, offset := range offsets {
		items |= 1 << o.item(offset)
	}
	return items
}

// nextCommit lets Kafka execute a commit, or not, and answer, or not. A commit
// whose answer is lost is done with once the owner has left the group.
func (w *walkWorld) nextCommit(s *walkState, p, which int, a CommitOffset, who string,
	try func(walkState, walkInput, string, ...any), fail func(Outcome, string, ...any), emit walkEmit,
) {
	if which == former {
		try(*s, walkInput{outcome: Fenced}, "its commit is refused: the partition is somebody else's")
		return
	}
	position := w.commitOf(w.owners[s.owners[p][which].owner], a)
	text := w.positions[position].metadata
	t := *s
	w.execute(&t, p, position)
	try(t, walkInput{}, "commits %d: %s", w.positions[position].offset, text)
	fail(Failed, "Kafka refuses a commit for now")
	if w.broken == "late commit" {
		if t, ok := s.fault(); ok && t.late[p] == 0 {
			t.late[p] = position
			w.step(&t, p, which, walkInput{outcome: Failed})
			emit(t, false, "%s: gets no answer to its commit of %d: %s", who, w.positions[position].offset, text)
		}
		return
	}
	fail(Fenced, "gets no answer to a commit that Kafka does not execute, and leaves the group")
	if t, ok := s.fault(); ok {
		w.execute(&t, p, position)
		w.step(&t, p, which, walkInput{outcome: Fenced})
		emit(t, false, "%s: commits %d: %s; gets no answer, and leaves the group", who, w.positions[position].offset, text)
	}
}

// settle ends the INSERTs that carry rows of a partition. Whoever waits for one hears of it.
func (w *walkWorld) settle(s *walkState, p, which int) {
	for i := range s.inserts {
		in := &s.inserts[i]
		if in.token == 0 || in.parts&(1<<p) == 0 || w.broken == "no settle" || w.broken == "only own inserts settled" && in.joined() {
			continue
		}
		w.answer(s, i, Failed)
	}
}

// send begins an INSERT with the rows of the owners of partitions.
func (w *walkWorld) send(s *walkState, parts []int, which int) bool {
	free := slices.IndexFunc(s.inserts[:], func(in walkInsert) bool { return in.token == 0 })
	if free < 0 {
		return false
	}
	var in walkInsert
	var names []string
	for _, p := range parts {
		c := &s.owners[p][which]
		a := w.owners[c.owner].action.(Insert)
		names = append(names, a.Token)
		in.items |= w.owners[c.owner].sends(a)
		in.parts |= 1 << p
		in.clients[p] = int8(1 + which)
		c.waits = true
	}
	in.token = w.tokenOf(names...)
	s.inserts[free] = in
	return true
}

// joinedSend lets the owners of both partitions send together.
func (w *walkWorld) joinedSend(s *walkState, emit walkEmit) {
	if len(w.logs) < 2 {
		return
	}
	for p := range w.logs {
		c := s.owners[p][current]
		if c.owner == 0 || c.waits || c.alone || c.process != s.owners[0][current].process {
			return
		}
		o := w.owners[c.owner]
		if a, ok := o.action.(Insert); !ok || a.Rows != nil || o.m.block.planned {
			return
		}
	}
	t := *s
	if w.send(&t, []int{0, 1}, current) {
		items := t.inserts[0].items | t.inserts[1].items | t.inserts[2].items
		emit(t, true, "process %d: sends the rows %s of both partitions in one INSERT", s.owners[0][current].process, w.itemsText(items))
	}
}

// nextInsert lets ClickHouse go on with an INSERT.
func (w *walkWorld) nextInsert(s *walkState, i int, emit walkEmit) {
	in := s.inserts[i]
	name := w.tokens[in.token].name
	detached := in.clients == [maxParts]int8{}
	var outcome Outcome
	t := *s
	switch {
	case s.knows(in.token):
		w.answer(&t, i, OK)
		emit(t, true, "ClickHouse knows %s and stores nothing", name)
	case w.refuses(in.items):
		outcome = Refused
		w.answer(&t, i, Refused)
		emit(t, true, "ClickHouse refuses values of %s", name)
	default:
		t.remember(in.token)
		t.store(in.items)
		u := t
		w.answer(&t, i, OK)
		emit(t, true, "ClickHouse stores the rows %s of %s", w.itemsText(in.items), name)
		if u.faults > 0 && !detached {
			u.faults--
			v := u
			w.answer(&u, i, Failed)
			emit(u, false, "ClickHouse stores the rows %s of %s, and the answer is lost", w.itemsText(in.items), name)
			w.answered(&v, i, emit, "ClickHouse stores the rows %s of %s, and a view fails", w.itemsText(in.items), name)
		}
	}
	if detached { // its rows may never have arrived
		t := *s
		t.inserts[i] = walkInsert{}
		emit(t, true, "ClickHouse ends %s, whose sender is gone", name)
	}
	t, ok := s.fault()
	if !ok {
		return
	}
	if !detached {
		u := t
		u.inserts[i].clients = [maxParts]int8{}
		rest := u.inserts[i]
		u.inserts[i] = in
		w.answer(&u, i, Failed)
		if free := slices.IndexFunc(u.inserts[:], func(in walkInsert) bool { return in.token == 0 }); free >= 0 {
			u.inserts[free] = rest
			emit(u, false, "the connection is cut while ClickHouse goes on with %s", name)
		}
		if outcome != Refused {
			w.answered(&t, i, emit, "ClickHouse answers %s with an error", name)
		}
	}
	if outcome == OK && !s.knows(in.token) {
		t, _ := s.fault()
		t.remember(in.token)
		for i := range t.inserts {
			if t.inserts[i].token != 0 {
				w.answer(&t, i, Failed)
			}
		}
		emit(t, false, "ClickHouse is killed after it has written the token of %s, and before its rows", name)
	}
}

// answered lets ClickHouse answer with an error. Joined blocks are sent once more, or not.
func (w *walkWorld) answered(s *walkState, i int, emit walkEmit, format string, args ...any) {
	in := s.inserts[i]
	if in.joined() && in.clients[0] == 1+current && in.clients[1] == 1+current && !s.viewsFail[s.owners[0][current].process] {
		t := *s
		t.inserts[i].again = true
		emit(t, false, format+"; it is sent again", args...)
	}
	t := *s
	w.answer(&t, i, Answered)
	emit(t, false, format, args...)
}

// canonical makes states equal that differ only in names: of the processes, and
// in the order of INSERTs; or in tokens that nobody sends again.
func (w *walkWorld) canonical(s *walkState) {
	slices.SortFunc(s.inserts[:], func(a, b walkInsert) int {
		if a.token == 0 || b.token == 0 {
			return int(b.token) - int(a.token)
		}
		return int(a.token)*64 + int(a.items) - int(b.token)*64 - int(b.items)
	})
	var used [maxParts]uint8
	for p := range w.logs {
		used[p] = w.used(s, p, current) | w.used(s, p, former)
	}
	for number, token := range w.tokens {
		if s.knows(int16(number)) && (token.uniques[0]&^used[0] != 0 || token.uniques[1]&^used[1] != 0) {
			s.tokens[number/64] &^= 1 << (number % 64)
		}
	}
	first := int8(0)
	for p := range s.owners {
		for which := range s.owners[p] {
			if c := &s.owners[p][which]; c.owner == 0 {
				*c = walkClaim{process: c.process}
				if which == former {
					c.process = 0
				}
			}
		}
	}
	for p := maxParts - 1; p >= 0; p-- {
		if c := s.owners[p][current]; c.owner != 0 {
			first = c.process
		}
	}
	if first == 1 {
		for p := range s.owners {
			for which := range s.owners[p] {
				if c := &s.owners[p][which]; c.owner != 0 || which == current {
					c.process = 1 - c.process
				}
			}
		}
		s.viewsFail[0], s.viewsFail[1] = s.viewsFail[1], s.viewsFail[0]
	}
	if s.owners[0][current].owner == 0 && s.owners[1][current].owner == 0 && s.owners[0][former].owner == 0 && s.owners[1][former].owner == 0 {
		s.owners = [maxParts][2]walkClaim{}
		s.viewsFail = [2]bool{}
	}
}

// violation says which invariant a state breaks, or nothing.
func (w *walkWorld) violation(s *walkState) string {
	for item, n := range s.stored {
		if n > 1 {
			return fmt.Sprintf("row %s is stored twice", itemNames(1<<item))
		}
	}
	for p, log := range w.logs {
		for offset := range w.positions[s.position[p]].offset {
			if item := log[offset].item; s.stored[item] == 0 && s.diverted&(1<<item) == 0 {
				return fmt.Sprintf("the position of partition %d has passed record %d, whose row %s is not stored", p, offset, itemNames(1<<item))
			}
		}
	}
	return ""
}

// quiet reports whether there is nothing left to do: all is read, and nothing is
// under way. A refused row may wait for others, which tell whether it is at fault.
func (w *walkWorld) quiet(s *walkState) bool {
	if s.inserts != [maxInserts]walkInsert{} {
		return false
	}
	for p, log := range w.logs {
		c := s.owners[p][current]
		if c.owner == 0 || int(s.logEnd[p]) < len(log) || s.owners[p][former].owner != 0 {
			return false
		}
		o := w.owners[c.owner]
		position := w.positions[s.position[p]].offset
		waits := false
		for offset, r := range log {
			if !r.bad && s.stored[r.item] == 0 {
				return false
			}
			waits = waits || r.bad && int64(offset) >= position
		}
		if _, fetches := o.action.(Fetch); !waits && (!fetches || o.m.block.open || o.m.next != int64(len(log)) || position >= 0 && position != o.m.next && w.broken != "late commit") {
			return false
		}
	}
	return true
}

// itemsText is itemNames while a story is told.
func (w *walkWorld) itemsText(items uint8) string {
	if !w.telling {
		return ""
	}
	return itemNames(items)
}

func itemNames(items uint8) string {
	var names []string
	for i, name := range []string{"a", "b", "c", "d"} {
		if items&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

package dns

import (
	"net/netip"
	"strings"
	"time"
)

const (
	// unansweredAfter is when a question counts as unanswered; clients ask
	// again by then.
	unansweredAfter = 5 * time.Second
	// slowAfter is the time to an answer beyond which it is reported at once.
	slowAfter = 100 * time.Millisecond
	// questionMemory is how long a question is remembered after it was last
	// asked, for late answers and for repetitions.
	questionMemory = 15 * time.Second
	// repeatAfter is the least time after which the same question with another
	// id or port is a repetition, not a second client's.
	repeatAfter = time.Second
	// maxResolution bounds the time from the first question to a repetition.
	maxResolution = 30 * time.Second
	// maxRepeats bounds the repetitions of one question that wait together.
	maxRepeats = 4
	// maxSearchLooks bounds the names tried to recognize a search list.
	maxSearchLooks = 64
	// quietCheck is the time between two looks for records that are due.
	quietCheck = time.Second

	// Bounds over all namespaces and of one, at about 300 bytes each.
	maxQuestions, maxQuestionsPerSpace = 16384, 4096
	maxSubjects, maxSubjectsPerSpace   = 8192, 1024
	// maxRecords bounds the records that wait for Take.
	maxRecords = 16384
)

// Config controls what a Table reports.
type Config struct {
	// Interval is the time between two records of the same subject, Step the
	// least time between two of those reported at once.
	Interval, Step time.Duration
	// Excluded reports whether exchanges between these ends are left out of the
	// records; their names are still learned. nil excludes nothing.
	Excluded func(client, resolver netip.AddrPort) bool
}

// Stats holds totals since New, and Questions, Subjects and Names, which are
// current numbers.
type Stats struct {
	// Questions, Subjects and Names are remembered now.
	Questions, Subjects, Names int
	// Asked counts questions, Answered answers that belong to one.
	Asked, Answered uint64
	// Unmatched counts answers without a question.
	Unmatched uint64
	// Untracked counts questions that did not fit, and names that were reported
	// without the name because a namespace had too many.
	Untracked uint64
	// ForgottenNames counts addresses forgotten to make room.
	ForgottenNames uint64
	// Dropped counts records lost because too many waited for Take.
	Dropped uint64
}

// Record adds up exchanges of one client with one resolver about one name.
type Record struct {
	Start, End int64 // Unix times in nanoseconds: of the first question, and of the last answer or loss
	Namespace  uint64
	// Client has port 0 if the questions came from several ports.
	Client   netip.AddrPort
	Resolver netip.AddrPort
	// Name is empty for all names beyond those that fit.
	Name string
	// Code is the name of the last error code, or empty.
	Code string
	// Queries counts questions, Failures answers with an error code, Unanswered
	// questions without an answer in 5 s.
	Queries, Failures, Unanswered uint32
	// Time is the sum of the times to the answers, MaxTime the longest.
	// Microseconds.
	Time    uint64
	MaxTime uint32
	// Key distinguishes the record from others with the same end, namespace and
	// client.
	Key uint64
}

// Table follows the questions of all network namespaces. Use New.
type Table struct {
	cfg     Config
	spaces  map[uint64]*space
	records []Record
	stats   Stats
	checked int64
}

// space is one network namespace.
type space struct {
	inode    uint64
	open     map[exchange]*question
	latest   map[asker]*question
	subjects map[subject]*tally
	names    map[netip.Addr]resolved
	trouble  bool // some tally has trouble to report
}

// exchange identifies a question and its answer.
type exchange struct {
	client, resolver netip.AddrPort
	id, kind         uint16
	name             string
}

// asker identifies the questions among which one may repeat another.
type asker struct {
	client, resolver netip.Addr
	kind             uint16
	name             string
}

// subject is what a record is about.
type subject struct {
	client   netip.Addr
	resolver netip.AddrPort
	name     string
}

// question waits for its answer.
type question struct {
	exchange
	began    int64 // of its resolution
	asked    [maxRepeats]int64
	waiting  int // of asked
	last     int64
	device   int
	excluded bool
}

// New returns an empty table.
func New(cfg Config) *Table { return &Table{cfg: cfg, spaces: map[uint64]*space{}} }

// Configure changes the configuration.
func (t *Table) Configure(cfg Config) { t.cfg = cfg }

// Open starts following a network namespace.
func (t *Table) Open(namespace uint64) {
	t.Forget(namespace)
	t.spaces[namespace] = &space{
		inode:    namespace,
		open:     map[exchange]*question{},
		latest:   map[asker]*question{},
		subjects: map[subject]*tally{},
		names:    map[netip.Addr]resolved{},
	}
}

// Forget reports what is known of a namespace and stops following it. Questions
// that wait for an answer are not reported.
func (t *Table) Forget(namespace uint64) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	for s, y := range sp.subjects {
		sp.excuse(s, y)
		t.report(sp, s, y, &y.quiet, false)
		t.report(sp, s, y, &y.bad, true)
	}
	t.stats.Questions -= len(sp.open)
	t.stats.Subjects -= len(sp.subjects)
	t.stats.Names -= len(sp.names)
	delete(t.spaces, namespace)
}

// Observe records a packet. Its addresses must be those of the namespace, not
// of others whose packets it forwards. Observe does not keep p.
func (t *Table) Observe(namespace uint64, p *Packet) {
	sp := t.spaces[namespace]
	switch {
	case sp == nil:
	case p.Outgoing && !p.Message.Response && p.To.Port() == Port:
		t.ask(sp, p)
	case !p.Outgoing && p.Message.Response && p.From.Port() == Port:
		t.answer(sp, p)
	}
}

func (t *Table) ask(sp *space, p *Packet) {
	m := &p.Message
	id := exchange{p.From, p.To, m.ID, m.Type, m.Name}
	q := sp.open[id]
	if q != nil && q.device != p.Interface {
		return // the same packet on its way through another device
	}
	t.stats.Asked++
	if q == nil {
		if t.stats.Questions >= maxQuestions || len(sp.open) >= maxQuestionsPerSpace {
			t.stats.Untracked++
			return
		}
		q = &question{exchange: id, began: p.Time, device: p.Interface}
		q.excluded = t.cfg.Excluded != nil && t.cfg.Excluded(id.client, id.resolver)
		who := q.asker()
		if before := sp.latest[who]; before != nil && p.Time-before.last >= int64(repeatAfter) && p.Time-before.began <= int64(maxResolution) {
			q.began = before.began
		}
		sp.open[id], sp.latest[who] = q, q
		t.stats.Questions++
	}
	if q.waiting == maxRepeats {
		t.lost(sp, q, p.Time)
	}
	q.asked[q.waiting] = p.Time
	q.waiting++
	q.last = p.Time
}

func (q *question) asker() asker {
	return asker{q.client.Addr(), q.resolver.Addr(), q.kind, q.name}
}

func (t *Table) answer(sp *space, p *Packet) {
	m := &p.Message
	q := sp.open[exchange{p.To, p.From, m.ID, m.Type, m.Name}]
	if q == nil {
		t.stats.Unmatched++
		if p.From.Addr().IsLoopback() {
			t.learn(sp, p) // only a process of the namespace can send it
		}
		return
	}
	t.stats.Answered++
	t.learn(sp, p)
	for q.waiting > 0 && p.Time-q.asked[0] > int64(unansweredAfter) {
		t.lost(sp, q, p.Time)
	}
	t.remove(sp, q)
	if q.excluded {
		return
	}
	took := max(p.Time-q.began, 0)
	s := sums{
		start: q.began, end: max(p.Time, q.began), queries: uint32(q.waiting), port: q.client.Port(),
		time: uint64(took) / 1000, max: uint32(min(took/1000, 1<<32-1)),
	}
	if m.Code != 0 {
		s.failures, s.code = 1, codeName(m.Code)
	}
	y := t.tally(sp, q)
	switch {
	case y == nil:
	case m.Code == 0 && took <= int64(slowAfter):
		y.quiet.add(&s)
		y.resolved = p.Time
	default:
		if m.Code == 0 {
			y.resolved = p.Time
		}
		sp.record(y, &s)
	}
}

// lost counts the first of the waiting questions as unanswered.
func (t *Table) lost(sp *space, q *question, now int64) {
	asked := q.asked[0]
	copy(q.asked[:], q.asked[1:q.waiting])
	q.waiting--
	if q.excluded {
		return
	}
	s := sums{start: asked, end: min(max(now, asked), asked+int64(unansweredAfter)), queries: 1, unanswered: 1, port: q.client.Port()}
	if y := t.tally(sp, q); y != nil {
		sp.record(y, &s)
	}
}

func (t *Table) remove(sp *space, q *question) {
	delete(sp.open, q.exchange)
	t.stats.Questions--
	if who := q.asker(); sp.latest[who] == q {
		delete(sp.latest, who)
	}
}

// Advance finds the questions that have no answer by now, and reports what is
// due. Packets that arrived before now should have been passed to Observe.
func (t *Table) Advance(now time.Time) {
	at := now.UnixNano()
	look := at-t.checked >= int64(quietCheck) || at < t.checked
	if look {
		t.checked = at
	}
	for _, sp := range t.spaces {
		for _, q := range sp.open {
			for q.waiting > 0 && at-q.asked[0] >= int64(unansweredAfter) {
				t.lost(sp, q, at)
			}
			if at-q.last >= int64(questionMemory) {
				t.remove(sp, q)
			}
		}
		if sp.trouble {
			t.reportTrouble(sp, at)
		}
		if look {
			t.reportQuiet(sp, at)
			t.expireNames(sp, at)
		}
	}
}

// reportTrouble reports the trouble that is due.
func (t *Table) reportTrouble(sp *space, now int64) {
	sp.trouble = false
	for s, y := range sp.subjects {
		if !y.bad.any() {
			continue
		}
		if now-y.reported < int64(t.cfg.Step) || y.absent && now-y.noticed < int64(t.cfg.Step) {
			sp.trouble = true // later
			continue
		}
		if sp.excuse(s, y) {
			continue
		}
		t.report(sp, s, y, &y.bad, true)
		y.reported = now
	}
}

// excuse moves trouble that a search list explains to the quiet exchanges, and
// reports whether it did.
func (sp *space) excuse(s subject, y *tally) bool {
	if !y.bad.any() || !y.absent || !sp.searched(s, y.bad.start) {
		return false
	}
	y.bad.failures, y.bad.code = 0, ""
	y.quiet.add(&y.bad)
	y.bad = sums{}
	return true
}

// searched reports whether a search list made the name: about that time, the
// same client resolved the name without its last labels, or its first labels
// with fewer of the last. With the search list of Kubernetes, a client that
// looks for cart.shop asks for cart.shop.NAMESPACE.svc.cluster.local before it
// asks for cart.shop.svc.cluster.local.
func (sp *space) searched(s subject, since int64) bool {
	found := func(name string) bool {
		y := sp.subjects[subject{s.client, s.resolver, name}]
		return y != nil && y.resolved >= since-int64(unansweredAfter)
	}
	looks := 0
	for head, tail, more := nextLabel("", s.name); more; head, tail, more = nextLabel(head, tail) {
		if found(head) {
			return true
		}
		for _, rest, more := nextLabel("", tail); more; _, rest, more = nextLabel("", rest) {
			if looks++; looks > maxSearchLooks {
				return false
			}
			if found(head + "." + rest) {
				return true
			}
		}
	}
	return false
}

// nextLabel moves the first label of tail to the end of head. more is false
// when nothing is left in tail.
func nextLabel(head, tail string) (longer, rest string, more bool) {
	label, rest, more := strings.Cut(tail, ".")
	if head != "" {
		label = head + "." + label
	}
	return label, rest, more
}

// reportQuiet reports the subjects whose interval is over, and forgets those
// that had no exchange for another.
func (t *Table) reportQuiet(sp *space, now int64) {
	for s, y := range sp.subjects {
		switch {
		case y.quiet.any() && now-y.quiet.start >= int64(t.cfg.Interval):
			y.touched = now
			t.report(sp, s, y, &y.quiet, false)
		// Forgotten earlier, the subject could end another record at the same time.
		case !y.quiet.any() && !y.bad.any() && now-max(y.touched, y.ends[0], y.ends[1]) >= int64(t.cfg.Interval):
			delete(sp.subjects, s)
			t.stats.Subjects--
		}
	}
}

// ClockStepped tells the table that the clock behind the times it is given was
// set forward by the duration, or back when it is negative.
func (t *Table) ClockStepped(by time.Duration) {
	d := int64(by)
	for _, sp := range t.spaces {
		for _, q := range sp.open {
			q.began, q.last = q.began+d, q.last+d
			for i := range q.asked {
				q.asked[i] += d
			}
		}
		for _, y := range sp.subjects {
			y.step(d)
		}
		for a, n := range sp.names {
			n.until += d
			sp.names[a] = n
		}
	}
}

// Pending returns the number of records that Take would append.
func (t *Table) Pending() int { return len(t.records) }

// Take appends the finished records to dst and removes them from the table.
func (t *Table) Take(dst []Record) []Record {
	dst = append(dst, t.records...)
	t.records = t.records[:0]
	return dst
}

// Stats returns the current totals.
func (t *Table) Stats() Stats { return t.stats }

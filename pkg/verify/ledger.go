package verify

import (
	"fmt"
	"slices"
	"time"
)

// Report is what a Verifier found so far. Counts are spans.
type Report struct {
	Run string `json:"run"` // service.instance.id of the spans
	// Sent = Acknowledged + Refused + Unanswered.
	Sent         int64 `json:"sent"`
	Acknowledged int64 `json:"acknowledged"`
	Refused      int64 `json:"refused"`    // for good, by an answer
	Unanswered   int64 `json:"unanswered"` // given up; they may be stored once
	// Acknowledged = Stored + Lost + Unverified, once a run has ended.
	Stored     int64 `json:"stored"` // at least once
	Lost       int64 `json:"lost"`   // ClickHouse answered without them after lost_after
	Unverified int64 `json:"unverified"`
	Twice      int64 `json:"twice"`   // stored more than once, unanswered ones included
	Damaged    int64 `json:"damaged"` // stored with another value
	Late       int64 `json:"late"`    // stored after more than late, lost ones that came included
	// Interrupted: a signal ended the run before its spans were sent or its duration was over.
	Interrupted bool `json:"interrupted,omitempty"`
	// Delay is the time from acknowledgement to visibility in SQL.
	Delay Histogram `json:"delay"`
	// Problem is the last error of a request or a lookup, empty if there was none.
	Problem string `json:"problem,omitempty"`
	// Examples names some spans that are lost, twice or damaged.
	Examples []string `json:"examples,omitempty"`

	everLost int64 // Lost, without those that came later taken away
}

// Right reports whether every acknowledged span was stored in time, once, as it was sent.
func (r *Report) Right() bool {
	return r.Acknowledged > 0 && r.Stored == r.Acknowledged && r.Refused+r.Unanswered+r.Lost+r.Unverified+r.Twice+r.Damaged+r.Late == 0
}

// maxExamples keeps a report readable.
const maxExamples = 10

// bounds are the upper limits of the histogram's buckets.
var bounds = []time.Duration{
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute,
}

// Histogram counts spans by their delay.
type Histogram struct {
	Buckets []Bucket      `json:"buckets"`
	P50     time.Duration `json:"p50"` // upper limit of the bucket
	P99     time.Duration `json:"p99"`
	Max     time.Duration `json:"max"`

	sum time.Duration
}

// Bucket counts the spans above the bucket before it, up to UpTo; UpTo 0 is without limit.
type Bucket struct {
	UpTo  time.Duration `json:"up_to"`
	Spans int64         `json:"spans"`
}

func newHistogram() Histogram {
	h := Histogram{Buckets: make([]Bucket, len(bounds)+1)}
	for i, b := range bounds {
		h.Buckets[i].UpTo = b
	}
	return h
}

func (h *Histogram) add(d time.Duration) {
	i, _ := slices.BinarySearch(bounds, d)
	h.Buckets[i].Spans++
	h.Max = max(h.Max, d)
	h.sum += d
}

// quantile returns the limit of the bucket that contains it, at most the largest delay.
func (h *Histogram) quantile(q float64) time.Duration {
	var total, below int64
	for _, b := range h.Buckets {
		total += b.Spans
	}
	for _, b := range h.Buckets {
		below += b.Spans
		if total > 0 && float64(below) >= q*float64(total) {
			if b.UpTo == 0 {
				break
			}
			return min(b.UpTo, h.Max)
		}
	}
	return h.Max
}

// entry is a trace that waits for a lookup.
type entry struct {
	number       uint64
	start        time.Time // of its first span
	spans        int
	acknowledged bool
	since        time.Time // of the acknowledgement, or of giving up
	seen         uint8     // bit per span: stored
	twice        uint8     // counted as twice
	damaged      uint8     // counted as damaged
	lost         uint8     // counted as lost
	next         time.Time // of its next lookup
	last         bool      // the next lookup is the last
}

func (e *entry) complete() bool { return e.seen == 1<<e.spans-1 }

// ledger knows what was sent and what ClickHouse has shown of it. It is pure: callers
// pass the time. It belongs to one goroutine at a time.
type ledger struct {
	cfg     Config
	maker   *maker
	waiting map[traceID]*entry
	report  Report
}

func newLedger(cfg Config, m *maker) *ledger {
	return &ledger{cfg: cfg, maker: m, waiting: map[traceID]*entry{}, report: Report{Run: m.runID, Delay: newHistogram()}}
}

// outcome is what became of a request.
type outcome int

const (
	acknowledged outcome = iota
	refused              // some or all of its spans, for good
	unanswered           // given up
)

// sent records a request. now is the time of its answer.
func (l *ledger) sent(r *request, o outcome, now time.Time) {
	for _, t := range r.traces {
		n := int64(t.spans)
		l.report.Sent += n
		switch o {
		case acknowledged:
			l.report.Acknowledged += n
		case refused:
			l.report.Refused += n
			continue
		case unanswered:
			l.report.Unanswered += n
		}
		l.waiting[l.maker.id(t.number)] = &entry{
			number: t.number, start: t.start, spans: t.spans, acknowledged: o == acknowledged, since: now,
			next: now, last: o == unanswered,
		}
		if o == unanswered {
			// It may be on its way: look once, when it has had time to come.
			l.waiting[l.maker.id(t.number)].next = now.Add(l.cfg.LostAfter)
		}
	}
}

// held is how many spans wait for a lookup.
func (l *ledger) held() int { return len(l.waiting) * spansOfTrace }

// maxLookup bounds a query.
const maxLookup = 500

// due returns the traces to look up now, those that have waited longest first, and the
// range of their start times.
func (l *ledger) due(now time.Time) (ids []traceID, from, to time.Time) {
	for id, e := range l.waiting {
		if !e.next.After(now) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b traceID) int {
		return l.waiting[a].next.Compare(l.waiting[b].next)
	})
	ids = ids[:min(len(ids), maxLookup)]
	for i, id := range ids {
		start := l.waiting[id].start
		if i == 0 || start.Before(from) {
			from = start
		}
		if i == 0 || start.After(to) {
			to = start
		}
	}
	return ids, from, to.Add(time.Second)
}

// found records the answer to a lookup of ids that was asked at asked and answered at now.
func (l *ledger) found(ids []traceID, rows []Span, asked, now time.Time) {
	byTrace := make(map[string][]Span, len(ids))
	for _, row := range rows {
		byTrace[row.TraceID] = append(byTrace[row.TraceID], row)
	}
	for _, id := range ids {
		if e := l.waiting[id]; e != nil {
			l.judge(id, e, byTrace[id.String()], asked, now)
		}
	}
}

func (l *ledger) judge(id traceID, e *entry, rows []Span, asked, now time.Time) {
	copies := make([]int, e.spans)
	want := l.maker.spans(e.number, e.start, e.spans)
	for i := range rows {
		row := &rows[i]
		at := slices.IndexFunc(want, func(s Span) bool { return s.SpanID == row.SpanID })
		if at < 0 {
			continue // the id is random: another program's trace does not have it
		}
		copies[at]++
		if column := want[at].differs(row); column != "" && e.damaged&(1<<at) == 0 {
			e.damaged |= 1 << at
			l.report.Damaged++
			l.example("damaged: trace %s span %s, column %s", row.TraceID, row.SpanID, column)
		}
	}
	for i, n := range copies {
		bit := uint8(1) << i
		if n > 0 && e.seen&bit == 0 {
			e.seen |= bit
			if e.acknowledged {
				l.arrived(e, bit, now)
			}
		}
		if n > 1 && e.twice&bit == 0 {
			e.twice |= bit
			l.report.Twice++
			l.example("twice: trace %s span %s, %d rows", id, want[i].SpanID, n)
		}
	}
	l.plan(id, e, asked, now)
}

func (l *ledger) arrived(e *entry, bit uint8, now time.Time) {
	delay := max(now.Sub(e.since), 0)
	l.report.Delay.add(delay)
	l.report.Stored++
	if delay > l.cfg.Late {
		l.report.Late++
	}
	if e.lost&bit != 0 {
		l.report.Lost--
	}
}

// plan decides when the trace is looked up next, or forgets it.
func (l *ledger) plan(id traceID, e *entry, asked, now time.Time) {
	switch {
	case e.last:
		delete(l.waiting, id)
	case e.complete():
		e.next, e.last = now.Add(l.cfg.Recheck), true
	case asked.Sub(e.since) < l.cfg.LostAfter:
		e.next = now.Add(l.cfg.Poll)
	default:
		for i := range e.spans {
			if bit := uint8(1) << i; e.seen&bit == 0 && e.acknowledged && e.lost&bit == 0 {
				e.lost |= bit
				l.report.Lost++
				l.report.everLost++
				l.example("lost: trace %s span %s, acknowledged %s", id, spanID(e.number, i), e.since.UTC().Format(time.RFC3339Nano))
			}
		}
		e.next, e.last = now.Add(l.cfg.Recheck), true
	}
}

func (l *ledger) example(format string, args ...any) {
	if len(l.report.Examples) < maxExamples {
		l.report.Examples = append(l.report.Examples, fmt.Sprintf(format, args...))
	}
}

// current returns the report as it stands.
func (l *ledger) current() Report {
	r := l.report
	r.Delay.Buckets = slices.Clone(r.Delay.Buckets)
	r.Delay.P50, r.Delay.P99 = r.Delay.quantile(0.5), r.Delay.quantile(0.99)
	r.Examples = slices.Clone(r.Examples)
	return r
}

// close ends a run: what no lookup has decided is unverified.
func (l *ledger) close() Report {
	l.report.Unverified = l.report.Acknowledged - l.report.Stored - l.report.Lost
	return l.current()
}

package query

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// all returns a function that decides whether a verdict fulfils all comparisons.
func all(verdicts []Compare) (func(verdict string) bool, error) {
	var each []func(string) bool
	for _, v := range verdicts {
		if v.Value.Kind != Text {
			return nil, v.badVerdict()
		}
		switch v.Op {
		case Equal, NotEqual:
			// What differs from the empty text is any verdict.
			if !slices.Contains(Verdicts, v.Value.Text) && (v.Value.Text != "" || v.Op == Equal) {
				return nil, v.bad("%.60q is no verdict: want one of %s", v.Value.Text, strings.Join(Verdicts, ", "))
			}
			each = append(each, func(verdict string) bool { return (verdict == v.Value.Text) == (v.Op == Equal) })
		case Match, NotMatch:
			pattern, err := regexp.Compile(anchored(v.Value.Text))
			if err != nil {
				return nil, v.bad("%v", err)
			}
			if v.Op == Match && !slices.ContainsFunc(Verdicts, pattern.MatchString) {
				return nil, v.bad("%.60q matches no verdict: want one of %s", v.Value.Text, strings.Join(Verdicts, ", "))
			}
			each = append(each, func(verdict string) bool { return pattern.MatchString(verdict) == (v.Op == Match) })
		default:
			return nil, v.badVerdict()
		}
	}
	return func(verdict string) bool {
		return !slices.ContainsFunc(each, func(fulfils func(string) bool) bool { return !fulfils(verdict) })
	}, nil
}

func (e Compare) badVerdict() error {
	return e.bad("a verdict is compared with =, !=, =~ or !~ and a text")
}

// split takes the comparisons with network.verdict out of a conjunction.
func split(e Expr) (rest And, verdicts []Compare) {
	switch e := e.(type) {
	case nil:
	case And:
		for _, part := range e {
			more, found := split(part)
			rest, verdicts = append(rest, more...), append(verdicts, found...)
		}
	case Compare:
		if e.Field == (Field{Intrinsic, FieldVerdict}) {
			return nil, []Compare{e}
		}
		rest = And{e}
	default:
		rest = And{e}
	}
	return rest, verdicts
}

// trouble is what flow data shows where a verdict may be found: wider than what decides.
var trouble = map[string]string{
	"connect refused":        "refused > 0",
	"accept queue full":      "connect_failures + retransmits + accept_queue_full > 0",
	"connect failed":         "connect_failures > 0",
	"reset":                  "resets > 0",
	"timed out":              "timeouts > 0",
	"receiver's window full": "receive_window_limited_us > 0",
	"receiver does not read": "unread_bytes > 0",
	"retransmission":         "retransmits > 0",
	"slow handshake":         "retransmits > 0",
	"slow queue":             "queue_us > 0",
	"slow network":           "rtt_usual_us > 0 AND rtt_max_us > 2 * rtt_usual_us",
	"DNS failed":             "query_failures + queries_unanswered > 0",
	"slow DNS":               "query_time_max_us >= 100000",
}

// failures are verdicts on calls that mostly fail, maybe at once.
var failures = []string{"connect refused", "connect failed", "reset", "timed out", "DNS failed"}

// findVerdicts examines the network of traces that fulfil the other conditions and whose
// addresses or pods had such trouble at their time.
func (r *Reader) findVerdicts(ctx context.Context, s Search, fulfils func(verdict string) bool) (result Result, err error) {
	suspects, err := r.suspects(ctx, s, fulfils)
	if err != nil {
		return Result{}, err
	}
	more := len(suspects) == r.cfg.MaxVerdicts
	if suspects, err = r.measured(ctx, s, suspects, !fulfils(Clean)); err != nil {
		return Result{}, err
	}
	of, err := r.examine(ctx, s.Limit, suspects, fulfils)
	if err != nil {
		return Result{}, err
	}
	result = Result{Inspected: of.inspected, Partial: of.partial || more}
	if len(of.matched) == 0 {
		return result, nil
	}
	found, err := r.summariesOf(ctx, s, of)
	if err != nil {
		return Result{}, err
	}
	slices.SortStableFunc(found, func(a, b Summary) int { return b.Start.Compare(a.Start) })
	result.Traces = found
	return result, nil
}

// spansPerSummary keeps the text of a query below half of ClickHouse's max_query_size.
const spansPerSummary = 4000

// summariesOf describes the traces with spans that have a verdict that was searched for and
// fulfil the other conditions.
func (r *Reader) summariesOf(ctx context.Context, s Search, of examined) ([]Summary, error) {
	var all callsOf
	for _, id := range of.matched {
		for _, span := range slices.SortedFunc(maps.Keys(of.verdicts[id]), SpanKey.compare) {
			all = append(all, callOf{id, span})
		}
	}
	rest, byID := s.Where, map[string]Summary{}
	for calls := range slices.Chunk(all, spansPerSummary) {
		s.Where = And{rest, calls}
		some, err := r.summaries(ctx, s, calls.traces())
		if err != nil {
			return nil, err
		}
		for _, t := range some {
			for i, m := range t.Matches {
				t.Matches[i].Verdict = of.verdicts[t.TraceID][SpanKey{m.SpanID, m.Kind}]
			}
			if before, ok := byID[t.TraceID]; ok {
				t.Matched += before.Matched
				t.Matches = slices.Concat(before.Matches, t.Matches)
				t.Matches = t.Matches[:min(len(t.Matches), s.SpansPerTrace)]
			}
			byID[t.TraceID] = t
		}
	}
	var found []Summary
	for _, id := range of.matched {
		if t := byID[id]; t.Matched > 0 { // otherwise another span has the verdict
			t.Network = of.worst[id]
			found = append(found, t)
		}
	}
	return found, nil
}

// troubleSeconds is the grain in which the time of trouble is compared with that of spans.
const troubleSeconds = 300

// suspects returns the traces that may have a verdict, the slowest first. For verdicts on calls
// that mostly fail, traces with an error come before; for these and others, both take turns.
func (r *Reader) suspects(ctx context.Context, s Search, fulfils func(verdict string) bool) (found []candidate, err error) {
	order := "max(duration_ns) DESC, trace_id"
	if slices.ContainsFunc(failures, fulfils) {
		slowest, failed := order, "max(status_code = 'error') DESC, "+order
		order = failed
		if slices.ContainsFunc(Verdicts, func(v string) bool { return fulfils(v) && !slices.Contains(failures, v) }) {
			order = fmt.Sprintf("least(2 * row_number() OVER (ORDER BY %s), 2 * row_number() OVER (ORDER BY %s) + 1)", slowest, failed)
		}
	}
	c := r.compiler(s.Range)
	where, err := s.Where.sql(c)
	if err != nil {
		return nil, err
	}
	if !fulfils(Clean) {
		where = "(" + where + ") AND (" + r.inTrouble(c, s.Range, fulfils) + ")"
	}
	query := fmt.Sprintf(`SELECT trace_id, toUnixTimestamp64Nano(min(start_time)) FROM %s.spans WHERE (%s) AND %s%s
		GROUP BY trace_id ORDER BY %s LIMIT %d`, r.database, where, isCall, c.builder.within(s.Range), order, r.cfg.MaxVerdicts)
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var t candidate
		var start int64
		if err := scan(&t.id, &start); err != nil {
			return err
		}
		t.start = time.Unix(0, start)
		found = append(found, t)
		return nil
	}, c.args...)
	return found, err
}

// LeastGap is how much longer than its server worked the client of a call waits at least before
// the views call it harmed, unless it failed.
const LeastGap = 10 * time.Millisecond

// isCall is true for spans whose network is looked at.
const isCall = "kind IN ('client', 'server', 'producer', 'consumer')"

// measured returns the traces with the number of their spans, in their order; only those with a
// call that failed or took long enough to be harmed, if only they are wanted.
func (r *Reader) measured(ctx context.Context, s Search, of []candidate, harmed bool) (found []candidate, err error) {
	if len(of) == 0 {
		return nil, nil
	}
	having := "1"
	if harmed {
		having = fmt.Sprintf("countIf(%s AND (duration_ns >= %d OR status_code = 'error')) > 0", isCall, LeastGap)
	}
	b := builder{}
	spans := map[string]int{}
	err = r.db.Query(ctx, fmt.Sprintf("SELECT trace_id, count() FROM %s.spans WHERE trace_id IN %s%s GROUP BY trace_id HAVING %s",
		r.database, b.arg(idsOf(of)), b.within(s.Range.around(traceSpan)), having), func(scan func(...any) error) error {
		var id string
		var n uint64
		if err := scan(&id, &n); err != nil {
			return err
		}
		spans[id] = int(n)
		return nil
	}, b.args...)
	for _, t := range of {
		if t.spans = spans[t.id]; t.spans > 0 {
			found = append(found, t)
		}
	}
	return found, err
}

// inTrouble is true for spans whose pod or address had trouble about their time that may lead to
// such a verdict, and for those that say neither. A row of flow data counts for all spans that may
// overlap it, with a second between the clocks: they start in the grain of the row, or in the one
// before. Longer ones count always. So does trouble at the address that a span calls: what was
// seen there, or behind a proxy there, may not name the caller. Spans and flows without a pod
// count as of one: hosts have addresses that spans do not say.
func (r *Reader) inTrouble(c *compiler, during Range, fulfils func(verdict string) bool) string {
	troubled := []string{"false"}
	for _, v := range Verdicts {
		if v != Clean && fulfils(v) {
			troubled = append(troubled, trouble[v])
		}
	}
	grain := func(time string, plus int) string {
		return fmt.Sprintf("intDiv(toInt64(toUnixTimestamp(%s)) + %d, %d)", time, plus, troubleSeconds)
	}
	flows := func(columns string) string {
		// At most the grains of 20 minutes, whatever a row says of its time.
		return fmt.Sprintf("SELECT arrayJoin([%s]), arrayJoin(range(greatest(%s, %s), %s + 1)) FROM %s.flows WHERE (%s)%s",
			columns, grain("start_time", -1-troubleSeconds), grain("time", -4*troubleSeconds), grain("time", 1),
			r.database, strings.Join(troubled, " OR "), c.withinOf("time", Range{during.Start.Add(-time.Second), during.End.Add(11*time.Minute + troubleSeconds*time.Second)}))
	}
	ends := flows("ip, peer_ip, translated_peer_ip")
	return fmt.Sprintf("(ip, %s) IN (%s) OR peer_ip != toIPv6('::') AND (peer_ip, %[1]s) IN (%[2]s) OR (pod, %[1]s) IN (%[3]s) OR ip = toIPv6('::') AND pod = '' OR duration_ns >= %d",
		grain("start_time", 0), ends, flows("pod, peer_pod"), (troubleSeconds-2)*time.Second)
}

// examined is what the network did to traces that were examined.
type examined struct {
	matched   []string                      // traces with a verdict that was searched for
	verdicts  map[string]map[SpanKey]string // of their spans, by trace
	worst     map[string]string             // of any of their spans, by trace
	inspected int
	partial   bool // some were left out
}

// examine looks at the network of traces until enough of them have a verdict that was searched
// for, or time is over. A trace whose network takes more than a query may is left out.
func (r *Reader) examine(ctx context.Context, enough int, rest []candidate, fulfils func(verdict string) bool) (examined, error) {
	limit := r.cfg.MaxExecutionTime / 2 // what was found has still to be read, while clients such as Grafana wait 30 s
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end)/2)
	}
	looking, stop := context.WithTimeout(ctx, limit)
	defer stop()
	of := examined{verdicts: map[string]map[SpanKey]string{}, worst: map[string]string{}}
	var refused error
	// The first look is often enough.
	for atOnce := 1; len(rest) > 0 && len(of.matched) < enough && looking.Err() == nil; atOnce = min(2*atOnce, r.looksAtOnce()) {
		var batches [][]candidate
		for len(rest) > 0 && len(batches) < atOnce {
			var batch []candidate
			batch, rest = near(rest)
			batches = append(batches, batch)
		}
		looks, errs := make([]look, len(batches)), make([]error, len(batches))
		var working sync.WaitGroup
		for i, batch := range batches {
			working.Go(func() { looks[i], errs[i] = r.look(looking, batch) })
		}
		working.Wait()
		if ctx.Err() != nil {
			return examined{}, ctx.Err()
		}
		for i, batch := range batches {
			if errs[i] != nil && looking.Err() == nil {
				return examined{}, errs[i]
			}
			if looks[i].refused != nil {
				refused = looks[i].refused
			}
			of.add(batch, looks[i], enough, fulfils)
		}
	}
	if of.inspected == 0 && refused != nil && looking.Err() == nil {
		return examined{}, refused
	}
	of.partial = of.partial || len(rest) > 0
	return of, nil
}

// add takes the traces that were looked at together.
func (e *examined) add(batch []candidate, seen look, enough int, fulfils func(verdict string) bool) {
	for _, t := range batch {
		network, ok := seen.networks[t.id]
		if !ok {
			e.partial = true
			continue
		}
		e.inspected++
		verdicts := map[SpanKey]string{}
		for span, n := range network {
			if n.Verdict != "" && fulfils(n.Verdict) {
				verdicts[span] = n.Verdict
			}
		}
		switch {
		case len(verdicts) == 0:
		case len(e.matched) == enough:
			e.partial = true
		default:
			e.matched = append(e.matched, t.id)
			e.verdicts[t.id], e.worst[t.id] = verdicts, worst(network)
		}
	}
}

// looksAtOnce is how many queries may look at the network at a time: half of those that may run,
// so that a search leaves room for others.
func (r *Reader) looksAtOnce() int { return min(max(r.cfg.MaxQueries/2, 1), 4) }

// callOf is a span of a trace.
type callOf struct {
	trace string
	span  SpanKey
}

// callsOf is true for these spans. Those of a trace follow each other.
type callsOf []callOf

func (o callsOf) traces() (ids []string) {
	for _, c := range o {
		ids = append(ids, c.trace)
	}
	return slices.Compact(ids)
}

func (o callsOf) sql(c *compiler) (string, error) {
	spans := map[string][]string{}
	for _, call := range o {
		spans[call.trace] = append(spans[call.trace], fmt.Sprintf("%s %d", call.span.ID, call.span.Kind))
	}
	var each []string
	for _, id := range o.traces() {
		each = append(each, fmt.Sprintf("trace_id = %s AND concat(span_id, ' ', toString(toInt32(kind))) IN %s", c.arg(id), c.arg(spans[id])))
	}
	return "(" + strings.Join(each, " OR ") + ")", nil
}

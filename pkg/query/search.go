package query

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
)

// Search asks for traces with a span that fulfils a condition.
type Search struct {
	Range
	Where Expr // nil means any span
	// Limit is how many traces are wanted, the newest first.
	Limit int
	// SpansPerTrace is how many of the matching spans are returned for each trace.
	SpansPerTrace int
	// Show are attributes that matching spans are returned with.
	Show []Field
}

// Summary is a trace that a search found.
type Summary struct {
	TraceID     string
	RootService string
	RootName    string
	Start, End  time.Time
	Spans       int
	Errors      int
	Orphans     int // spans whose parent is not stored
	Services    map[string]uint64
	ErrorsOf    map[string]uint64
	Matched     int
	Matches     []Hit
	Network     string // the worst verdict of its calls, if the search looked at its network
}

// Hit is a span that fulfils the condition.
type Hit struct {
	SpanID, Service, Name string
	Kind                  ptrace.SpanKind
	Start                 time.Time
	Duration              time.Duration
	Shown                 map[string]string
	Verdict               string // if the search was for it
}

// Result is what a search found.
type Result struct {
	Traces []Summary // the newest first
	// Inspected is how many traces were looked at: those that were found, and by a search for
	// network.verdict all whose network was examined.
	Inspected int
	// Partial is true if there may be more.
	Partial bool
}

// Find returns the newest traces of a search. A search for network.verdict ends with what it
// has found when it takes longer than half of query.max_execution_time.
func (r *Reader) Find(ctx context.Context, s Search) (Result, error) {
	defer r.observe("search")()
	s, fulfils, err := r.prepare(s)
	if err != nil {
		return Result{}, err
	}
	if fulfils != nil {
		return r.findVerdicts(ctx, s, fulfils)
	}
	ids, err := r.newest(ctx, s)
	if err != nil || len(ids) == 0 {
		return Result{}, err
	}
	found, err := r.summaries(ctx, s, ids)
	return Result{Traces: found, Inspected: len(found), Partial: len(ids) == s.Limit}, err
}

// FindTraces returns the whole traces of a search, with what the network did to them.
func (r *Reader) FindTraces(ctx context.Context, s Search, each func(Trace) error) error {
	found, err := r.Find(ctx, s)
	if err != nil {
		return err
	}
	return r.Traces(ctx, found.Traces, each)
}

// tracesAtOnce bounds the traces in memory: at most this many are read by one query.
const tracesAtOnce = 20

// spanBytes is more than most spans have in a result.
const spanBytes = 1 << 10

// atOnce returns how many of the traces one query reads: their rows and bytes stay below half
// of what ClickHouse would refuse, so that they may have grown since. It is at least one.
func (r *Reader) atOnce(of []Summary) int {
	rows := min(r.cfg.MaxResultRows, r.cfg.MaxResultBytes/spanBytes) / 2
	for i, t := range of[:min(len(of), tracesAtOnce)] {
		rows -= int64(min(t.Spans, r.cfg.MaxSpans+1))
		if rows < 0 {
			return max(i, 1)
		}
	}
	return min(len(of), tracesAtOnce)
}

// Traces reads the traces of summaries, with what the network did to them, and calls each for
// them, one after another: together they may be larger than a result. Those that were read and not yet returned count as unread
// answers.
func (r *Reader) Traces(ctx context.Context, of []Summary, each func(Trace) error) error {
	most, wait := tracesAtOnce, r.cfg.NetworkTimeout
	for len(of) > 0 {
		chunk := of[:min(r.atOnce(of), most)]
		found, err := r.readTraces(ctx, chunk)
		if len(chunk) > 1 && r.db.TooLarge(err) {
			most = len(chunk) / 2 // their spans are larger than most
			continue
		}
		of = of[len(chunk):]
		if r.db.TooLarge(err) {
			r.log.Warn("a search leaves out a trace with a span larger than query.max_result_bytes", slog.String("trace_id", chunk[0].TraceID))
			continue
		}
		if err == nil {
			wait -= r.annotate(ctx, found, chunk, wait)
			err = r.pass(found, each)
		}
		if err != nil {
			return err
		}
		most = min(2*most, tracesAtOnce)
	}
	return nil
}

// readTraces reads the traces of summaries together. A single one is cut where its spans do not
// fit a result.
func (r *Reader) readTraces(ctx context.Context, of []Summary) ([]*readTrace, error) {
	ids := make([]string, len(of))
	in := Range{Start: of[0].Start, End: of[0].End}
	for i, s := range of {
		ids[i] = s.TraceID
		in = Range{Start: earlier(in.Start, s.Start), End: later(in.End, s.End.Add(time.Nanosecond))}
	}
	if len(ids) == 1 {
		return r.fitting(ctx, ids[0], in)
	}
	return r.traces(ctx, ids, in, r.cfg.MaxSpans)
}

func (r *Reader) pass(found []*readTrace, each func(Trace) error) error {
	bytes, sizer := 0, ptrace.ProtoMarshaler{}
	for _, t := range found {
		bytes += sizer.TracesSize(t.OTLP)
	}
	release, err := r.answers.Hold(bytes)
	if err != nil {
		return err
	}
	defer release()
	for _, t := range found {
		if err := each(t.Trace); err != nil {
			return err
		}
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// prepare bounds a search and takes the conditions on the verdict out of it: fulfils decides
// whether a verdict fulfils them, and is nil if there are none.
func (r *Reader) prepare(s Search) (_ Search, fulfils func(verdict string) bool, err error) {
	if s.Range, err = r.bounded(s.Range); err != nil {
		return s, nil, err
	}
	if s.Limit <= 0 {
		s.Limit = 20
	}
	s.Limit = min(s.Limit, r.cfg.MaxTraces)
	if s.SpansPerTrace <= 0 {
		s.SpansPerTrace = 3
	}
	s.SpansPerTrace = min(s.SpansPerTrace, 100)
	rest, verdicts := split(s.Where)
	s.Where = rest
	if len(verdicts) > 0 {
		fulfils, err = all(verdicts)
	}
	return s, fulfils, err
}

// newest returns the ids of the newest traces. It looks at the last hour first and then at
// ever longer ranges before, because most searches have enough in the last hour.
func (r *Reader) newest(ctx context.Context, s Search) (ids []string, err error) {
	end, step := s.End, time.Hour
	seen := map[string]bool{}
	for end.After(s.Start) && len(ids) < s.Limit {
		start := later(s.Start, end.Truncate(time.Hour).Add(-step))
		c := r.compiler(s.Range)
		where, err := s.Where.sql(c)
		if err != nil {
			return nil, err
		}
		query := fmt.Sprintf("SELECT trace_id FROM %s.spans WHERE (%s)%s GROUP BY trace_id ORDER BY max(start_time) DESC, trace_id LIMIT %d",
			r.database, where, c.builder.within(Range{start, end}), s.Limit)
		err = r.db.Query(ctx, query, func(scan func(...any) error) error {
			var id string
			if err := scan(&id); err != nil {
				return err
			}
			if !seen[id] && len(ids) < s.Limit {
				seen[id] = true
				ids = append(ids, id)
			}
			return nil
		}, c.args...)
		if err != nil {
			return nil, err
		}
		end, step = start, step*4
	}
	return ids, nil
}

func (r *Reader) compiler(within Range) *compiler {
	return &compiler{builder: &builder{}, database: r.database, within: within.around(traceSpan)}
}

// traceSpan is how far the spans of a trace that was found are looked for around the range
// of the search.
const traceSpan = time.Hour

// orphans counts the spans whose parent is missing. It looks at the first spans of a large
// trace; with arrayFilter and has, ClickHouse would copy all ids once for each span.
const orphans = "length(arrayExcept(groupArray(5000)(toString(parent_span_id)), arrayPushBack(groupArray(5000)(toString(span_id)), '')))"

// summaries describes traces, in the order of their ids.
func (r *Reader) summaries(ctx context.Context, s Search, ids []string) ([]Summary, error) {
	c := r.compiler(s.Range)
	where, err := s.Where.sql(c)
	if err != nil {
		return nil, err
	}
	first := func(column string) string {
		return fmt.Sprintf("groupArrayIf(%d)(%s, hit)", s.SpansPerTrace, column)
	}
	columns := []string{
		"trace_id", "argMin(toString(service_name), (parent_span_id != '', start_time))", "argMin(toString(name), (parent_span_id != '', start_time))",
		"toUnixTimestamp64Nano(min(start_time))", "max(toUnixTimestamp64Nano(end_time))", "count()", "countIf(status_code = 'error')",
		orphans,
		"sumMap(map(toString(service_name), toUInt64(1)))", "sumMap(map(toString(service_name), toUInt64(status_code = 'error')))",
		"countIf(hit)", first("span_id"), first("toString(service_name)"), first("toString(name)"), first("toInt32(kind)"), first("toUnixTimestamp64Nano(start_time)"), first("duration_ns"),
	}
	shown := make([][]string, len(s.Show))
	for _, f := range s.Show {
		columns = append(columns, first(f.value(c)))
	}
	known := c.arg(ids)
	query := fmt.Sprintf("WITH (%s) AS hit SELECT %s FROM %s.spans WHERE trace_id IN %s%s GROUP BY trace_id",
		where, strings.Join(columns, ", "), r.database, known, c.builder.within(s.Range.around(traceSpan)))
	byID := make(map[string]Summary, len(ids))
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var t Summary
		var start, end int64
		var spans, errs, missing, matched uint64
		var at struct {
			ids, services, names []string
			kinds                []int32
			starts, durations    []int64
		}
		targets := []any{
			&t.TraceID, &t.RootService, &t.RootName, &start, &end, &spans, &errs, &missing, &t.Services, &t.ErrorsOf,
			&matched, &at.ids, &at.services, &at.names, &at.kinds, &at.starts, &at.durations,
		}
		for i := range shown {
			shown[i] = nil
			targets = append(targets, &shown[i])
		}
		if err := scan(targets...); err != nil {
			return err
		}
		t.Start, t.End = time.Unix(0, start).UTC(), time.Unix(0, end).UTC()
		t.Spans, t.Errors, t.Orphans, t.Matched = int(spans), int(errs), int(missing), int(matched)
		for i, id := range at.ids {
			m := Hit{SpanID: id, Service: at.services[i], Name: at.names[i], Kind: ptrace.SpanKind(at.kinds[i]), Start: time.Unix(0, at.starts[i]).UTC(), Duration: time.Duration(at.durations[i])}
			for j, f := range s.Show {
				if v := shown[j][i]; v != "" {
					if m.Shown == nil {
						m.Shown = map[string]string{}
					}
					m.Shown[f.Name] = v
				}
			}
			t.Matches = append(t.Matches, m)
		}
		byID[t.TraceID] = t
		return nil
	}, c.args...)
	if err != nil {
		return nil, err
	}
	var found []Summary
	for _, id := range ids {
		if t, ok := byID[id]; ok {
			found = append(found, t)
		}
	}
	return found, nil
}

// value returns SQL for the text of an attribute, "" where there is none.
func (f Field) value(c *compiler) string {
	key := c.arg(f.Name)
	switch f.Scope {
	case Resource:
		return "resource_attributes[" + key + "]"
	case AnyScope:
		return fmt.Sprintf("if(mapContains(attributes, %s), attributes[%[1]s], resource_attributes[%[1]s])", key)
	case Instrument:
		return "scope_attributes[" + key + "]"
	default:
		return "attributes[" + key + "]"
	}
}

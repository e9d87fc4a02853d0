package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// lab is a filled staging table and its queries.
type lab struct {
	config
	server
	read time.Duration // CPU of the last insert's reading of the staging table
}

// result is one row of the report.
type result struct {
	name      string
	bytes     map[string]float64 // bytes per span, by group
	cpu       []time.Duration    // server CPU per span: insert, first merge, rewrite
	latencies []latency
}

type latency struct{ cold, warm time.Duration }

func (r result) String() string {
	total := 0.0
	for _, b := range r.bytes {
		total += b
	}
	cells := []string{r.name, fmt.Sprintf("%.1f", total)}
	for _, group := range []string{ids, times, attributes, resource, "indexes", rest} {
		cells = append(cells, fmt.Sprintf("%.1f", r.bytes[group]))
	}
	for i := range 3 {
		cell := ""
		if i < len(r.cpu) {
			cell = fmt.Sprintf("%.2f", float64(r.cpu[i].Nanoseconds())/1e3)
		}
		cells = append(cells, cell)
	}
	for _, q := range r.latencies {
		cells = append(cells, fmt.Sprintf("%.0f/%.0f", float64(q.cold.Microseconds())/1e3, float64(q.warm.Microseconds())/1e3))
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

func (l *lab) measure(ctx context.Context, v variant) (r result, err error) {
	if _, err := l.ask(ctx, "DROP TABLE IF EXISTS spans SYNC"); err != nil {
		return r, err
	}
	if _, err := l.ask(ctx, v.ddl()); err != nil {
		return r, err
	}
	r.name = v.name
	cost := l.apart
	if l.steady {
		cost = l.together
	}
	if r.cpu, err = cost(ctx, v); err != nil {
		return r, err
	}
	if r.bytes, err = l.sizes(ctx, v); err != nil {
		return r, err
	}
	for _, question := range l.questions(v) {
		q, err := l.time(ctx, question)
		if err != nil {
			return r, err
		}
		r.latencies = append(r.latencies, q)
	}
	return r, nil
}

// apart inserts first and merges then. It returns the CPU of inserts, of the first merge
// and of a rewrite.
func (l *lab) apart(ctx context.Context, v variant) ([]time.Duration, error) {
	if _, err := l.ask(ctx, "SYSTEM STOP MERGES spans"); err != nil {
		return nil, err
	}
	insert, err := l.insert(ctx, v)
	if err != nil {
		return nil, err
	}
	first, rewrite, err := l.merge(ctx)
	return []time.Duration{insert, first, rewrite}, err
}

// together lets ClickHouse merge while it inserts and until it stops by itself. It returns
// the CPU of all that, reading the blocks from the staging table left out.
func (l *lab) together(ctx context.Context, v variant) ([]time.Duration, error) {
	begun := l.cpu()
	if _, err := l.insert(ctx, v); err != nil {
		return nil, err
	}
	if err := l.waitMerged(ctx); err != nil {
		return nil, err
	}
	return []time.Duration{(l.cpu() - begun - l.read) / time.Duration(l.spans)}, nil
}

// waitMerged waits until no merge has run for two seconds.
func (l *lab) waitMerged(ctx context.Context) error {
	const interval, enough = 250 * time.Millisecond, 8
	for quiet := 0; quiet < enough; quiet++ {
		running, err := l.ask(ctx, "SELECT count() FROM system.merges")
		if err != nil {
			return err
		}
		if running != "0" {
			quiet = 0
		}
		if err := retry.Sleep(ctx, interval); err != nil {
			return err
		}
	}
	return nil
}

// insert copies the staging table block by block and returns the server's CPU
// per span of the cheapest INSERT: other work on the machine only adds to it.
// The data is sent in the native format under LZ4, as over the native protocol;
// one request becomes one part.
func (l *lab) insert(ctx context.Context, v variant) (time.Duration, error) {
	l.read = 0
	var used []time.Duration
	for block := range l.blocks() {
		sql := fmt.Sprintf("SELECT %s FROM stage WHERE block = %d", v.sources(), block)
		if l.sorted {
			sql += " ORDER BY " + v.order
		}
		sql += " FORMAT Native"
		begun := l.cpu()
		data, err := l.do(ctx, sql, nil, "compress=1", "prefer_column_name_to_alias=1", "max_block_size="+strconv.Itoa(l.block))
		if err != nil {
			return 0, err
		}
		before := l.cpu()
		l.read += before - begun
		if _, err := l.do(ctx, "INSERT INTO spans FORMAT Native", data, append(v.insert, "decompress=1")...); err != nil {
			return 0, err
		}
		used = append(used, l.cpu()-before)
	}
	if have, err := l.ask(ctx, "SELECT count() FROM spans"); err != nil || have != strconv.Itoa(l.spans) {
		return 0, fmt.Errorf("%s of %d spans arrived: %w", have, l.spans, err)
	}
	return slices.Min(used) / time.Duration(min(l.block, l.spans)), nil
}

// merge merges the fresh parts of all inserts into one, which interleaves their
// rows, and then rewrites that part a few times. It returns the server's CPU
// per span of the merge and of the cheapest rewrite. In production a span is
// merged about three times, from the part of its insert to the largest part.
func (l *lab) merge(ctx context.Context) (first, rewrite time.Duration, err error) {
	before := l.cpu()
	if _, err := l.ask(ctx, "SYSTEM START MERGES spans"); err != nil {
		return 0, 0, err
	}
	var used []time.Duration
	for range 4 {
		if _, err := l.ask(ctx, "OPTIMIZE TABLE spans FINAL"); err != nil {
			return 0, 0, err
		}
		used = append(used, l.cpu()-before)
		before = l.cpu()
	}
	spans := time.Duration(l.spans)
	return used[0] / spans, slices.Min(used[1:]) / spans, nil
}

// sizes returns the bytes per span on disk by group. Bytes without a column
// (marks of the key, checksums) belong to the rest, projections to the indexes.
func (l *lab) sizes(ctx context.Context, v variant) (map[string]float64, error) {
	text, err := l.ask(ctx, `
		SELECT column, sum(column_bytes_on_disk) FROM system.parts_columns WHERE active AND table = 'spans' GROUP BY column
		UNION ALL SELECT 'TOTAL', sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'spans'
		UNION ALL SELECT 'INDEX', sum(secondary_indices_compressed_bytes + secondary_indices_marks_bytes) FROM system.parts WHERE active AND table = 'spans'
		UNION ALL SELECT 'INDEX', sum(bytes_on_disk) FROM system.projection_parts WHERE active AND table = 'spans'`)
	if err != nil {
		return nil, err
	}
	groups, out, rows := v.groups(), map[string]float64{}, float64(l.spans)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "\t")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("size of %s: %w", name, err)
		}
		switch name {
		case "TOTAL":
			out[rest] += n / rows
			continue
		case "INDEX":
			out["indexes"] += n / rows
		default:
			if groups[name] == rest {
				continue
			}
			out[groups[name]] += n / rows
		}
		out[rest] -= n / rows
	}
	return out, nil
}

// question is a query of the report, with values to run it for.
type question struct {
	sql    string // ? is replaced by the value
	values []string
}

func (l *lab) questions(v variant) []question {
	a := v.asked
	hour := "%s >= toDateTime64('2026-06-01 12:00:00', 9, 'UTC') AND %[1]s < toDateTime64('2026-06-01 13:00:00', 9, 'UTC')"
	hour = fmt.Sprintf(hour, a.time)
	day := fmt.Sprintf("%s >= toDateTime64('2026-06-01 12:00:00', 9, 'UTC')", a.time)
	list := "SELECT " + a.list + " FROM spans WHERE "
	return []question{
		{"SELECT * FROM spans WHERE " + a.trace, l.sample("lower(trace_id)")},
		{list + a.service + " AND " + hour + " ORDER BY " + a.duration + " DESC LIMIT 20", []string{"frontend", "checkoutservice", "cartservice"}},
		{list + a.attribute + " AND " + day + " ORDER BY " + a.time + " DESC LIMIT 100", l.sample("attributes['app.user.id']")},
		{list + a.pod + " AND " + a.failed + " AND " + hour + " ORDER BY " + a.time + " DESC LIMIT 100", l.sample("pod")},
	}
}

// sample returns a few values of an expression from all over the staging table,
// the same for every variant: the frequency of a value determines its cost.
func (l *lab) sample(expression string) []string {
	sql := fmt.Sprintf("SELECT DISTINCT %s AS x FROM stage WHERE x != '' AND cityHash64(span_id) %% %d = 0 ORDER BY cityHash64(x) LIMIT 20", expression, max(1, l.spans/200))
	text, err := l.ask(context.Background(), sql)
	if err != nil || text == "" {
		return []string{"absent"}
	}
	return strings.Split(text, "\n")
}

// time runs a query for several values: first with empty server caches, then
// with warm ones. It returns the medians.
func (l *lab) time(ctx context.Context, q question) (latency, error) {
	var cold, warm []time.Duration
	for i := range l.repeat {
		sql := strings.ReplaceAll(q.sql, "?", q.values[i%len(q.values)]) + " FORMAT Native"
		for _, drop := range []string{"MARK CACHE", "UNCOMPRESSED CACHE", "PRIMARY INDEX CACHE", "INDEX MARK CACHE"} {
			if _, err := l.ask(ctx, "SYSTEM DROP "+drop); err != nil {
				return latency{}, err
			}
		}
		for _, times := range []*[]time.Duration{&cold, &warm} {
			start := time.Now()
			if _, err := l.ask(ctx, sql); err != nil {
				return latency{}, err
			}
			*times = append(*times, time.Since(start))
		}
	}
	slices.Sort(cold)
	slices.Sort(warm)
	return latency{cold[len(cold)/2], warm[len(warm)/2]}, nil
}

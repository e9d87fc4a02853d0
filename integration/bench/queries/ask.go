package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// subject is what a question is asked about.
type subject struct {
	from, to     string // an hour, as SQL
	trace, user  string // of one trace in the hour
	service, pod string
}

// query is a question in the terms of one schema.
type query struct {
	sql string
	// right holds for a row that the answer must have, on top of having rows.
	right string
}

type question struct {
	name string
	// ours and collectors return the query; collectors is nil where that schema
	// has no answer.
	ours, collectors func(subject) query
}

const (
	list          = "SELECT trace_id, span_id, service_name, name, start_time, duration_ns, status_code, status_message FROM metaflow.spans WHERE "
	collectorList = "SELECT TraceId, SpanId, ServiceName, SpanName, Timestamp, Duration, StatusCode, StatusMessage FROM otel.otel_traces WHERE "
)

func (s subject) during(column string) string {
	return fmt.Sprintf("%s >= %s AND %[1]s < %[3]s", column, s.from, s.to)
}

var questions = []question{
	{
		"one trace by id",
		func(s subject) query {
			return query{"SELECT * FROM metaflow.spans WHERE trace_id = '" + s.trace + "'", "trace_id = '" + s.trace + "' AND attributes['app.user.id'] = '" + s.user + "'"}
		},
		// As its users ask: the time of the trace from the small table first.
		func(s subject) query {
			ts := " FROM otel.otel_traces_trace_id_ts WHERE TraceId = '" + s.trace + "')"
			return query{"WITH (SELECT min(Start)" + ts + " AS a, (SELECT max(End) + 1" + ts + " AS b SELECT * FROM otel.otel_traces WHERE TraceId = '" + s.trace + "' AND Timestamp >= a AND Timestamp <= b", "TraceId = '" + s.trace + "'"}
		},
	},
	{
		"trace_network of a trace",
		func(s subject) query {
			return query{"SELECT * FROM metaflow.trace_network(trace_id = '" + s.trace + "')", "matched = 'ip and port' AND peer_span_id != ''"}
		},
		nil,
	},
	{
		"slowest 20 spans of a service in an hour",
		func(s subject) query {
			return query{list + "service_name = '" + s.service + "' AND " + s.during("start_time") + " ORDER BY duration_ns DESC LIMIT 20", "service_name = '" + s.service + "'"}
		},
		func(s subject) query {
			return query{collectorList + "ServiceName = '" + s.service + "' AND " + s.during("Timestamp") + " ORDER BY Duration DESC LIMIT 20", "ServiceName = '" + s.service + "'"}
		},
	},
	{
		"an attribute's value in an hour",
		func(s subject) query {
			return query{list + "attributes['app.user.id'] = '" + s.user + "' AND " + s.during("start_time") + " ORDER BY start_time DESC LIMIT 100", "trace_id = '" + s.trace + "'"}
		},
		func(s subject) query {
			return query{collectorList + "SpanAttributes['app.user.id'] = '" + s.user + "' AND " + s.during("Timestamp") + " ORDER BY Timestamp DESC LIMIT 100", "TraceId = '" + s.trace + "'"}
		},
	},
	{
		"errors of a pod in an hour",
		func(s subject) query {
			return query{list + "namespace = 'shop' AND pod = '" + s.pod + "' AND status_code = 'error' AND " + s.during("start_time") + " ORDER BY start_time DESC LIMIT 100", "service_name = '" + s.service + "' AND status_code = 'error'"}
		},
		func(s subject) query {
			return query{collectorList + "ResourceAttributes['k8s.pod.name'] = '" + s.pod + "' AND StatusCode = 'Error' AND " + s.during("Timestamp") + " ORDER BY Timestamp DESC LIMIT 100", "ServiceName = '" + s.service + "' AND StatusCode = 'Error'"}
		},
	},
	{
		"service_network of an hour",
		func(s subject) query {
			return query{"SELECT * FROM metaflow.service_network WHERE " + s.during("minute"), "client_service = 'svc-1' AND server_service = 'svc-8' AND requests > 0 AND retransmits > 0"}
		},
		nil,
	},
}

// figures are those of one query's runs; rows and read of the warm ones.
type figures struct {
	rows, read []uint64 // of the answer; that ClickHouse read for it
	cold, warm []time.Duration
	cpu        time.Duration // of ClickHouse for all warm runs
}

// ask prints how long the answers take.
func (d *data) ask(ctx context.Context, o options) error {
	// The threads of the machine for which targets are stated. A query is never
	// asked twice in service, so what its first run found out must not help.
	ctx = driver.Context(ctx, driver.WithSettings(driver.Settings{"max_threads": 2, "use_query_condition_cache": 0}))
	subjects := make([]subject, o.runs)
	for i := range subjects {
		var err error
		if subjects[i], err = d.subject(ctx, i, o.runs); err != nil {
			return err
		}
	}
	fmt.Print("| question | schema | rows | rows read | CPU | cold p50 | cold p95 | warm p50 | warm p95 |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, q := range questions {
		for _, schema := range []struct {
			name string
			of   func(subject) query
		}{{"MetaFlow", q.ours}, {"collector", q.collectors}} {
			if schema.of == nil || schema.name == "collector" && !o.collector {
				continue
			}
			f, err := d.measure(ctx, o.dir, subjects, schema.of)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", q.name, schema.name, err)
			}
			fmt.Printf("| %s | %s | %d | %d | %.0f ms | %s | %s | %s | %s |\n", q.name, schema.name, percentile(f.rows, 50), percentile(f.read, 50), f.cpu.Seconds()*1e3/float64(len(f.warm)),
				ms(f.cold, 50), ms(f.cold, 95), ms(f.warm, 50), ms(f.warm, 95))
			if o.explain {
				if err := d.explain(ctx, schema.of(subjects[0]).sql); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// subject returns the i-th of n subjects, spread over the hours.
func (d *data) subject(ctx context.Context, i, n int) (subject, error) {
	h := i * d.hours / n
	service, pod := (i*11+1)%services, i%podsEach
	at := func(t time.Time) string { return "toDateTime('" + t.Format(time.DateTime) + "', 'UTC')" }
	s := subject{
		from: at(d.hour(h)), to: at(d.hour(h + 1)),
		service: fmt.Sprintf("svc-%d", service), pod: fmt.Sprintf("svc-%d-6b7f9c5d4-%d", service, pod),
	}
	// In the middle of the hour: its connections have reported before and will.
	t := h*d.traces() + d.traces()/4 + i*d.traces()/(2*n)
	err := d.conn.QueryRow(ctx, "WITH {t:UInt64} AS t SELECT "+traceID+", "+userID, driver.Named("t", uint64(t))).Scan(&s.trace, &s.user)
	return s, err
}

// measure asks about every subject, cold and then warm, after checking that the
// answer is what was generated.
func (d *data) measure(ctx context.Context, dir string, subjects []subject, of func(subject) query) (figures, error) {
	var f figures
	for _, s := range subjects {
		q := of(s)
		var rows, right uint64
		if err := d.conn.QueryRow(ctx, "SELECT count(), countIf("+q.right+") FROM ("+q.sql+")").Scan(&rows, &right); err != nil {
			return f, err
		}
		if right == 0 {
			return f, fmt.Errorf("none of %d rows is as generated (%s): %s", rows, q.right, q.sql)
		}
		if err := d.cool(ctx, dir); err != nil {
			return f, err
		}
		cold, err := d.read(ctx, q.sql)
		if err != nil {
			return f, err
		}
		before, err := measured.UsageOf(d.pid)
		if err != nil {
			return f, err
		}
		warm, err := d.read(ctx, q.sql)
		if err != nil {
			return f, err
		}
		after, err := measured.UsageOf(d.pid)
		if err != nil {
			return f, err
		}
		if cold.rows != rows || warm.rows != rows {
			return f, fmt.Errorf("%d and %d rows instead of %d: %s", cold.rows, warm.rows, rows, q.sql)
		}
		f.cold, f.warm = append(f.cold, cold.took), append(f.warm, warm.took)
		f.rows, f.read = append(f.rows, rows), append(f.read, warm.read)
		f.cpu += after.CPU - before.CPU
	}
	return f, nil
}

// answer is what reading one answer took.
type answer struct {
	rows, read uint64 // of the answer; that ClickHouse read for it
	took       time.Duration
}

// read reads the whole answer to a query.
func (d *data) read(ctx context.Context, sql string) (answer, error) {
	var a answer
	ctx = driver.Context(ctx, driver.WithProgress(func(p *driver.Progress) { a.read += p.Rows }))
	begun := time.Now()
	rows, err := d.conn.Query(ctx, sql)
	if err != nil {
		return a, err
	}
	for rows.Next() {
		a.rows++
	}
	err = errors.Join(rows.Err(), rows.Close())
	a.took = time.Since(begun)
	return a, err
}

// cool drops ClickHouse's caches and evicts its files from the page cache.
func (d *data) cool(ctx context.Context, dir string) error {
	for _, cache := range []string{"MARK CACHE", "UNCOMPRESSED CACHE", "PRIMARY INDEX CACHE", "INDEX MARK CACHE", "INDEX UNCOMPRESSED CACHE"} {
		if err := d.conn.Exec(ctx, "SYSTEM DROP "+cache); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // merged away
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		file, err := root.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer file.Close()
		return unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// explain prints which parts and granules the indexes leave.
func (d *data) explain(ctx context.Context, sql string) error {
	rows, err := d.conn.Query(ctx, "EXPLAIN indexes = 1 "+sql)
	if err != nil {
		return err
	}
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return errors.Join(err, rows.Close())
		}
		// Some lines list every expression, with the whole trace in each.
		measured.Progress("    %s", line[:min(len(line), 200)])
	}
	return errors.Join(rows.Err(), rows.Close())
}

func percentile[T cmp.Ordered](all []T, p int) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)*p-1)/100]
}

func ms(all []time.Duration, p int) string {
	return fmt.Sprintf("%.0f ms", percentile(all, p).Seconds()*1e3)
}

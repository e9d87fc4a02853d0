package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// The demo prints these queries as it runs them.
const (
	countsQuery = `SELECT count() AS spans, uniqExact(trace_id, span_id) AS ids
FROM metaflow.spans
WHERE service_namespace = 'webstore'`

	servicesQuery = `SELECT service_name, count() AS spans
FROM metaflow.spans
WHERE service_namespace = 'webstore'
GROUP BY service_name`

	slowestQuery = `SELECT trace_id
FROM metaflow.spans
WHERE service_namespace = 'webstore' AND parent_span_id = ''
ORDER BY duration_ns DESC
LIMIT 1`

	traceQuery = `SELECT span_id, parent_span_id, service_name, name, kind, start_time, duration_ns,
       status_code, status_message, protocol, endpoint, peer_ip, peer_port
FROM metaflow.spans
WHERE trace_id = '%s'
ORDER BY start_time, duration_ns DESC`

	graphQuery = `SELECT client.service_name AS caller,
       if(server.service_name = '', client.protocol, server.service_name) AS callee,
       any(client.protocol) AS protocol, any(client.peer_ip) AS peer, count() AS requests,
       requests / greatest(1, dateDiff('ms', min(client.start_time), max(client.start_time)) / 1000) AS per_second,
       100 * countIf(client.status_code = 'error') / requests AS errors_percent,
       quantilesExact(0.5, 0.95, 0.99)(client.duration_ns / 1e6) AS ms
FROM metaflow.spans AS client
LEFT JOIN (SELECT trace_id, parent_span_id, service_name FROM metaflow.spans WHERE kind = 'server') AS server
       ON server.trace_id = client.trace_id AND server.parent_span_id = client.span_id
WHERE client.service_namespace = 'webstore' AND client.kind = 'client'
GROUP BY caller, callee
ORDER BY requests DESC, caller, callee`
)

// span is one row of a trace.
type span struct {
	id, parent         string
	service, name      string
	kind               string
	start              time.Time
	duration           time.Duration
	failed             bool
	message            string
	protocol, endpoint string
	peer               string // host:port, empty if unknown
}

// edge is one row of the service graph. Durations are in milliseconds, measured
// by the caller.
type edge struct {
	caller, callee, protocol, peer string
	requests                       uint64
	perSecond, errorsPercent       float64
	ms                             []float64 // p50, p95, p99
}

// database runs the queries.
type database struct{ conn driver.Conn }

func openDatabase(address string) (*database, error) {
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{address}})
	if err != nil {
		return nil, fmt.Errorf("open clickhouse at %s: %w", address, err)
	}
	return &database{conn}, nil
}

func (d *database) close() error { return d.conn.Close() }

// counts returns the number of stored spans and of distinct ones.
func (d *database) counts(ctx context.Context) (spans, ids uint64, err error) {
	if err := d.conn.QueryRow(ctx, countsQuery).Scan(&spans, &ids); err != nil {
		return 0, 0, fmt.Errorf("count spans: %w", err)
	}
	return spans, ids, nil
}

// services returns the number of stored spans by service.
func (d *database) services(ctx context.Context) (map[string]uint64, error) {
	out := map[string]uint64{}
	err := d.each(ctx, servicesQuery, func(rows driver.Rows) error {
		var name string
		var n uint64
		err := rows.Scan(&name, &n)
		out[name] = n
		return err
	})
	return out, err
}

// slowest returns the id of the trace with the longest root span.
func (d *database) slowest(ctx context.Context) (id string, err error) {
	if err := d.conn.QueryRow(ctx, slowestQuery).Scan(&id); err != nil {
		return "", fmt.Errorf("find slowest trace: %w", err)
	}
	return id, nil
}

func (d *database) trace(ctx context.Context, id string) (out []span, err error) {
	err = d.each(ctx, fmt.Sprintf(traceQuery, id), func(rows driver.Rows) error {
		var (
			s        span
			duration int64
			status   string
			ip       net.IP
			port     uint16
		)
		err := rows.Scan(&s.id, &s.parent, &s.service, &s.name, &s.kind, &s.start, &duration,
			&status, &s.message, &s.protocol, &s.endpoint, &ip, &port)
		s.duration, s.failed, s.peer = time.Duration(duration), status == "error", address(ip, port)
		out = append(out, s)
		return err
	})
	return out, err
}

func (d *database) graph(ctx context.Context) (out []edge, err error) {
	err = d.each(ctx, graphQuery, func(rows driver.Rows) error {
		var e edge
		var ip net.IP
		err := rows.Scan(&e.caller, &e.callee, &e.protocol, &ip, &e.requests, &e.perSecond, &e.errorsPercent, &e.ms)
		e.peer = address(ip, 0)
		out = append(out, e)
		return err
	})
	return out, err
}

// each calls row for each row of a query's result.
func (d *database) each(ctx context.Context, query string, row func(driver.Rows) error) error {
	rows, err := d.conn.Query(ctx, query)
	if err != nil {
		return fmt.Errorf("query %s…: %w", firstLine(query), err)
	}
	for rows.Next() {
		if err := row(rows); err != nil {
			_ = rows.Close() // the first error matters
			return fmt.Errorf("read row of %s…: %w", firstLine(query), err)
		}
	}
	if err := rows.Close(); err != nil {
		return fmt.Errorf("read result of %s…: %w", firstLine(query), err)
	}
	return rows.Err()
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// address formats an IPv4-mapped address as IPv4, and an unknown one as "".
func address(ip net.IP, port uint16) string {
	switch {
	case len(ip) == 0 || ip.IsUnspecified():
		return ""
	case port == 0:
		return ip.String()
	}
	return net.JoinHostPort(ip.String(), fmt.Sprint(port))
}

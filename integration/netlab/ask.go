//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// said is an edge with trouble, as a view names it.
type said struct {
	Client  string `json:"client"`
	Server  string `json:"server"`
	Verdict string `json:"verdict"`
	Why     string `json:"why,omitempty"`
}

func (s said) String() string {
	text := fmt.Sprintf("%s -> %s: %s", s.Client, s.Server, s.Verdict)
	if s.Why != "" {
		text += " (" + s.Why + ")"
	}
	return text
}

// optional returns a column, or an empty string where the view has none.
func (l *lab) optional(ctx context.Context, view string, column string) (string, error) {
	rows, err := l.conn.Query(ctx, "SELECT * FROM "+view+" LIMIT 0")
	if err != nil {
		return "", err
	}
	defer func() { _ = rows.Close() }()
	if slices.Contains(rows.Columns(), column) {
		return "toString(" + column + ")", rows.Err()
	}
	return "''", rows.Err()
}

// trouble asks which edges are in trouble.
func (l *lab) trouble(ctx context.Context) (list []said, took time.Duration, err error) {
	const view = "metaflow.network_trouble(minutes = 15)"
	why, err := l.optional(ctx, view, "why")
	if err != nil {
		return nil, 0, err
	}
	begun := time.Now()
	rows, err := l.conn.Query(ctx, "SELECT client_service, server_service, verdict, "+why+" FROM "+view)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var s said
		if err := rows.Scan(&s.Client, &s.Server, &s.Verdict, &s.Why); err != nil {
			return nil, 0, err
		}
		list = append(list, s)
	}
	return list, time.Since(begun), rows.Err()
}

// span is a client or server span of trace_network.
type span struct {
	Trace       string     `ch:"trace" json:"trace"`
	Service     string     `ch:"service_name" json:"service"`
	Kind        string     `ch:"kind_name" json:"kind"`
	Name        string     `ch:"name" json:"name"`
	Start       time.Time  `ch:"start_time" json:"start"`
	DurationNS  int64      `ch:"duration_ns" json:"duration_ns"`
	Failed      bool       `ch:"failed" json:"failed"`
	PeerService string     `ch:"peer_service_name" json:"peer_service,omitempty"`
	PeerIP      netip.Addr `ch:"-" json:"-"`
	PeerText    string     `ch:"peer" json:"peer"`
	PeerSpan    string     `ch:"peer_span_id" json:"peer_span"`
	GapNS       int64      `ch:"gap" json:"gap_ns"`
	Matched     string     `ch:"matched" json:"matched"`
	Unmatched   string     `ch:"unmatched" json:"unmatched,omitempty"`
	Verdict     string     `ch:"verdict" json:"verdict"`
	Why         string     `ch:"why" json:"why,omitempty"`
	Seen        string     `ch:"seen" json:"seen,omitempty"`
	Evidence    string     `ch:"evidence" json:"evidence,omitempty"`
}

// traces picks the slowest traces, failed ones, and others.
func (l *lab) traces(ctx context.Context, slowest, failed, others int) (ids []string, err error) {
	rows, err := l.conn.Query(ctx, `
WITH traces AS (
    SELECT trace_id, max(duration_ns) AS d, countIf(status_code = 'error') AS bad, cityHash64(trace_id) AS lot
    FROM metaflow.spans WHERE kind IN ('client', 'server') GROUP BY trace_id)
SELECT DISTINCT trace_id FROM (
    SELECT trace_id FROM traces ORDER BY d DESC LIMIT $1
    UNION ALL SELECT trace_id FROM traces WHERE bad > 0 ORDER BY lot LIMIT $2
    UNION ALL SELECT trace_id FROM traces ORDER BY lot LIMIT $3)`, slowest, failed, others)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// trace asks about the spans of one trace.
func (l *lab) trace(ctx context.Context, id string) (list []span, took time.Duration, err error) {
	view := fmt.Sprintf("metaflow.trace_network(trace_id = '%s')", id)
	var more []string
	for _, column := range []string{"why", "seen", "evidence"} {
		if l.columns[column] == "" {
			c, err := l.optional(ctx, view, column)
			if err != nil {
				return nil, 0, err
			}
			l.columns[column] = c
		}
		more = append(more, l.columns[column]+" AS "+column+"_")
	}
	begun := time.Now()
	rows, err := l.conn.Query(ctx, fmt.Sprintf(`SELECT service_name, toString(kind), name, start_time, duration_ns, status_code = 'error', peer_service_name,
		replaceOne(toString(peer_ip), '::ffff:', ''), peer_span_id, toInt64(gap_ns), matched, unmatched, verdict, %s
		FROM %s WHERE kind IN ('client', 'server')`, strings.Join(more, ", "), view))
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		s := span{Trace: id}
		if err := rows.Scan(&s.Service, &s.Kind, &s.Name, &s.Start, &s.DurationNS, &s.Failed, &s.PeerService, &s.PeerText, &s.PeerSpan, &s.GapNS,
			&s.Matched, &s.Unmatched, &s.Verdict, &s.Why, &s.Seen, &s.Evidence); err != nil {
			return nil, 0, err
		}
		list = append(list, s)
	}
	return list, time.Since(begun), rows.Err()
}

// edge returns the ends of a span's call. The lab knows whose address the
// peer's is.
func (l *lab) edge(s span) (client, server string) {
	peer := s.PeerService
	for _, h := range l.hosts {
		if peer == "" && (s.PeerText == h.ip.String() || s.PeerText == h.ip6.String()) {
			peer = h.name
		}
	}
	if peer == "" && s.PeerText == virtual {
		peer = "stock"
	}
	if s.Kind == "server" {
		return peer, s.Service
	}
	return s.Service, peer
}

// instrumented are the services in spans. All but ledger have a host of that name.
var instrumented = []string{"api", "orders", "stock", "price", "reports", "ledger"}

// processes are the names under which views may know the others.
var processes = map[string][]string{
	"db": {"postgres", "postgresql"}, "cache": {"redis-server", "redis"}, "nginx": {"nginx"}, "visitors": {"netlab"}, "batch": {"netlab"}, "sink": {"netlab"}, "sidecar": {"netlab"},
}

// is reports whether a view means this host.
func (l *lab) is(name, said string) bool {
	if said == name || strings.HasPrefix(said, name+"."+domain) {
		return true
	}
	if slices.Contains(instrumented, name) {
		// The service's own name, where nothing behind its address answers.
		return strings.HasPrefix(said, name+"-service")
	}
	if slices.Contains(processes[name], said) {
		return true
	}
	h := l.hosts[name]
	return h != nil && (said == h.ip.String() || said == h.ip6.String())
}

// unharmed reports whether a client span was neither failed nor slow compared
// with its server span, so that no verdict on the network can be right.
func (s span) unharmed() bool {
	return s.Kind == "client" && !s.Failed && s.PeerSpan != "" && s.GapNS < max(int64(10*time.Millisecond), s.DurationNS/5)
}

// trueReasons are the reasons for which a client span truly has no flow here.
var trueReasons = []string{"loopback", "unix", "not resolved"}

func (s span) accounted() bool {
	return s.Matched != "" || slices.ContainsFunc(trueReasons, func(r string) bool { return strings.Contains(strings.ToLower(s.Unmatched), r) })
}

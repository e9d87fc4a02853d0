package query

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Missing says what is known about a span that is not where it is looked for.
type Missing struct {
	TraceID string `json:"trace_id"`
	// Spans is how many spans of the trace are stored.
	Spans int `json:"stored_spans"`
	// Stored says whether the span that was asked for is one of them; nil if none was.
	Stored *bool `json:"span_is_stored,omitempty"`
	// Parents are spans that stored ones name as their parents and that are not stored.
	Parents []MissingParent `json:"missing_parents"`
	// Services are those of the stored spans and the one that was asked for, with the last
	// span of each in any trace of the last day.
	Services []ServiceSeen `json:"services"`
	// Agents are the agents that are not connected now, or report exceptions.
	Agents []AgentSeen `json:"agents_in_trouble"`
}

// MissingParent is a parent that is not stored.
type MissingParent struct {
	SpanID  string `json:"span_id"`
	Child   string `json:"child_span_id"`
	Service string `json:"child_service"`
	Name    string `json:"child_name"`
	Kind    string `json:"child_kind"`
}

// ServiceSeen is when a service was last seen.
type ServiceSeen struct {
	Service string     `json:"service"`
	Last    *time.Time `json:"last_span"` // nil if there was none in the last day
	Hour    uint64     `json:"spans_in_the_last_hour"`
}

// AgentSeen is an agent in trouble.
type AgentSeen struct {
	Name       string    `json:"name"`
	Host       string    `json:"host"`
	Seen       time.Time `json:"last_seen"`
	Alive      bool      `json:"connected"`
	Exceptions []string  `json:"exceptions,omitempty"`
}

// Missing looks for a span of a trace. An empty span id asks about the whole trace.
func (r *Reader) Missing(ctx context.Context, traceID, spanID, service string) (m Missing, err error) {
	defer r.observe("missing")()
	m = Missing{TraceID: traceID, Parents: []MissingParent{}, Services: []ServiceSeen{}, Agents: []AgentSeen{}}
	b := builder{}
	stored := map[string]bool{}
	services := map[string]bool{}
	var rows []MissingParent // their SpanID is the parent's, maybe stored
	query := fmt.Sprintf("SELECT span_id, parent_span_id, toString(service_name), toString(name), toString(kind) FROM %s.spans WHERE trace_id = %s ORDER BY start_time LIMIT %d", r.database, b.arg(traceID), r.cfg.MaxSpans)
	if err := r.db.Query(ctx, query, func(scan func(...any) error) error {
		var p MissingParent
		if err := scan(&p.Child, &p.SpanID, &p.Service, &p.Name, &p.Kind); err != nil {
			return err
		}
		stored[p.Child], services[p.Service] = true, true
		rows = append(rows, p)
		return nil
	}, b.args...); err != nil {
		return m, err
	}
	m.Spans = len(rows)
	if spanID != "" {
		there := stored[spanID]
		m.Stored = &there
	}
	for _, p := range rows {
		if p.SpanID != "" && !stored[p.SpanID] {
			m.Parents = append(m.Parents, p)
		}
	}
	if service != "" {
		services[service] = true
	}
	if err := r.seen(ctx, services, &m); err != nil {
		return m, err
	}
	query = fmt.Sprintf("SELECT toString(name), toString(host), toDateTime64(seen, 3, 'UTC'), toUInt8(alive), exceptions FROM %s.agents WHERE NOT alive OR notEmpty(exceptions) ORDER BY seen DESC LIMIT 50", r.database)
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var a AgentSeen
		var alive uint8
		if err := scan(&a.Name, &a.Host, &a.Seen, &alive, &a.Exceptions); err != nil {
			return err
		}
		a.Alive = alive == 1
		m.Agents = append(m.Agents, a)
		return nil
	})
	return m, err
}

func (r *Reader) seen(ctx context.Context, services map[string]bool, m *Missing) error {
	if len(services) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(services))
	found := map[string]ServiceSeen{}
	b := builder{}
	query := fmt.Sprintf("SELECT toString(service_name), toDateTime64(max(start_time), 3, 'UTC'), countIf(start_time > now() - INTERVAL 1 HOUR) FROM %s.spans WHERE service_name IN %s%s GROUP BY service_name",
		r.database, b.arg(names), b.within(Range{Start: r.now().Add(-lookback)}))
	err := r.db.Query(ctx, query, func(scan func(...any) error) error {
		var s ServiceSeen
		var last time.Time
		if err := scan(&s.Service, &last, &s.Hour); err != nil {
			return err
		}
		s.Last = &last
		found[s.Service] = s
		return nil
	}, b.args...)
	for _, name := range names {
		s := found[name]
		s.Service = name
		m.Services = append(m.Services, s)
	}
	return err
}

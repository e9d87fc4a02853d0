package query

import (
	"context"
	"fmt"
	"math"
	"time"
)

// Edge is the calls of one service to another, with what the network did to them. An empty
// service is not known by its spans; then the address says who it is.
type Edge struct {
	Client          string  `json:"client"`
	Server          string  `json:"server"`
	ClientAddress   string  `json:"client_address,omitempty"`
	ServerAddress   string  `json:"server_address,omitempty"`
	Requests        uint64  `json:"requests"`
	Errors          uint64  `json:"errors"`
	P50Millis       float64 `json:"p50_ms"`
	P99Millis       float64 `json:"p99_ms"`
	Connections     uint64  `json:"connections"`
	ConnectFailures uint64  `json:"connect_failures"`
	Resets          uint64  `json:"resets"`
	Segments        uint64  `json:"segments_sent"`
	Retransmits     uint64  `json:"retransmits"`
	RTTMicros       float64 `json:"rtt_us"`
	Verdict         string  `json:"verdict,omitempty"`
	Why             string  `json:"why,omitempty"`
	Harmed          uint64  `json:"harmed"`
	NetworkKnown    bool    `json:"network_known"`
}

// Minute is one minute of an edge.
type Minute struct {
	Minute      time.Time `json:"minute"`
	Requests    uint64    `json:"requests"`
	Errors      uint64    `json:"errors"`
	P50Millis   float64   `json:"p50_ms"`
	P99Millis   float64   `json:"p99_ms"`
	Segments    uint64    `json:"segments_sent"`
	Retransmits uint64    `json:"retransmits"`
	Resets      uint64    `json:"resets"`
	Failures    uint64    `json:"connect_failures"`
	RTTMicros   float64   `json:"rtt_us"`
	UsualMicros float64   `json:"rtt_usual_us"`
}

// maxEdges bounds a map of services: more fit on no page.
const maxEdges = 2000

// Trouble is a line of the view network_trouble.
type Trouble struct {
	Client        string  `json:"client"`
	Server        string  `json:"server"`
	ClientAddress string  `json:"client_address,omitempty"`
	ServerAddress string  `json:"server_address,omitempty"`
	Verdict       string  `json:"verdict"`
	Why           string  `json:"why"`
	Scope         string  `json:"scope,omitempty"` // node or pod, if that is at fault and not an edge
	Requests      uint64  `json:"requests"`
	Errors        uint64  `json:"errors"`
	Harmed        uint64  `json:"harmed"`
	P99Millis     float64 `json:"p99_ms"`
	Retransmits   uint64  `json:"retransmits"`
	Segments      uint64  `json:"segments_sent"`
	RTTMicros     float64 `json:"rtt_us"`
	UsualMicros   float64 `json:"rtt_usual_us"`
}

// Troubles returns what is wrong with the network in the last minutes, the worst first.
func (r *Reader) Troubles(ctx context.Context, minutes int) (found []Trouble, err error) {
	defer r.observe("troubles")()
	if err := checkMinutes(minutes); err != nil {
		return nil, err
	}
	query := fmt.Sprintf(`SELECT toString(client_service), toString(server_service), toString(client_address), toString(server_address), toString(verdict), toString(why), toString(scope),
		toUInt64(requests), toUInt64(errors), toUInt64(harmed), toFloat64(p99_ms), toUInt64(retransmits), toUInt64(segments_sent), toFloat64(rtt_us), toFloat64(rtt_usual_us)
		FROM %s.network_trouble(minutes = %d) LIMIT %d`, r.database, minutes, maxEdges)
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var t Trouble
		if err := scan(&t.Client, &t.Server, &t.ClientAddress, &t.ServerAddress, &t.Verdict, &t.Why, &t.Scope,
			&t.Requests, &t.Errors, &t.Harmed, &t.P99Millis, &t.Retransmits, &t.Segments, &t.RTTMicros, &t.UsualMicros); err != nil {
			return err
		}
		found = append(found, t)
		return nil
	})
	return found, err
}

// maxMinutes bounds questions about the last minutes.
const maxMinutes = 24 * 60

func checkMinutes(minutes int) error {
	if minutes < 1 || minutes > maxMinutes {
		return fmt.Errorf("%w: minutes: %d is not between 1 and %d", ErrBadRequest, minutes, maxMinutes)
	}
	return nil
}

// Edges returns the edges of the last minutes, the busiest first, each with its verdict.
func (r *Reader) Edges(ctx context.Context, minutes int) (found []Edge, err error) {
	if err := checkMinutes(minutes); err != nil {
		return nil, err
	}
	troubles, err := r.Troubles(ctx, minutes)
	if err != nil {
		return nil, err
	}
	defer r.observe("edges")()
	type ends struct{ client, server, clientAddress, serverAddress string }
	bad := map[ends]Trouble{}
	for _, t := range troubles {
		bad[ends{t.Client, t.Server, t.ClientAddress, t.ServerAddress}] = t
	}
	query := fmt.Sprintf(`SELECT toString(client_service), toString(server_service), toString(client_address), toString(server_address), sum(requests), sum(errors),
		toFloat64(max(p50_ms)), toFloat64(max(p99_ms)), sum(connections), sum(connect_failures), sum(resets), sum(segments_sent), sum(retransmits), toFloat64(max(rtt_us))
		FROM %s.service_network WHERE minute >= toStartOfMinute(now() - toIntervalMinute(%d))
		GROUP BY client_service, server_service, client_address, server_address ORDER BY sum(requests) DESC, sum(segments_sent) DESC, client_service, server_service LIMIT %d`, r.database, minutes, maxEdges)
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var e Edge
		if err := scan(&e.Client, &e.Server, &e.ClientAddress, &e.ServerAddress, &e.Requests, &e.Errors, &e.P50Millis, &e.P99Millis,
			&e.Connections, &e.ConnectFailures, &e.Resets, &e.Segments, &e.Retransmits, &e.RTTMicros); err != nil {
			return err
		}
		for _, f := range []*float64{&e.P50Millis, &e.P99Millis, &e.RTTMicros} {
			if math.IsNaN(*f) { // JSON has no such number
				*f = 0
			}
		}
		at := ends{e.Client, e.Server, e.ClientAddress, e.ServerAddress}
		e.NetworkKnown = e.Segments > 0 || e.Connections > 0 || e.ConnectFailures > 0
		if t, ok := bad[at]; ok {
			e.Verdict, e.Why, e.Harmed, e.NetworkKnown = t.Verdict, t.Why, t.Harmed, true
			delete(bad, at)
		} else if e.NetworkKnown {
			e.Verdict = Clean
		}
		found = append(found, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, t := range troubles { // a node or a pod at fault is no edge of service_network
		if _, left := bad[ends{t.Client, t.Server, t.ClientAddress, t.ServerAddress}]; left && t.Scope == "" {
			found = append(found, Edge{
				Client: t.Client, Server: t.Server, ClientAddress: t.ClientAddress, ServerAddress: t.ServerAddress, Requests: t.Requests, Errors: t.Errors, P99Millis: t.P99Millis,
				Segments: t.Segments, Retransmits: t.Retransmits, RTTMicros: t.RTTMicros, Verdict: t.Verdict, Why: t.Why, Harmed: t.Harmed, NetworkKnown: true,
			})
		}
	}
	return found, nil
}

// History returns the last minutes of the edge between two services, the oldest first.
func (r *Reader) History(ctx context.Context, client, server string, minutes int) (found []Minute, err error) {
	defer r.observe("history")()
	if err := checkMinutes(minutes); err != nil {
		return nil, err
	}
	b := builder{}
	query := fmt.Sprintf(`SELECT minute, sum(requests), sum(errors), toFloat64(max(p50_ms)), toFloat64(max(p99_ms)), sum(segments_sent), sum(retransmits), sum(resets), sum(connect_failures),
		toFloat64(max(rtt_us)), toFloat64(max(rtt_usual_us))
		FROM %s.service_network WHERE minute >= toStartOfMinute(now() - toIntervalMinute(%d)) AND client_service = %s AND server_service = %s GROUP BY minute ORDER BY minute`,
		r.database, minutes, b.arg(client), b.arg(server))
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var m Minute
		if err := scan(&m.Minute, &m.Requests, &m.Errors, &m.P50Millis, &m.P99Millis, &m.Segments, &m.Retransmits, &m.Resets, &m.Failures, &m.RTTMicros, &m.UsualMicros); err != nil {
			return err
		}
		for _, f := range []*float64{&m.P50Millis, &m.P99Millis, &m.RTTMicros, &m.UsualMicros} {
			if math.IsNaN(*f) {
				*f = 0
			}
		}
		found = append(found, m)
		return nil
	}, b.args...)
	return found, err
}

// Call is how often a service called another.
type Call struct {
	Client, Server string
	Count          uint64
	Verdict        string // of the last minutes, if the range ends now
}

// joinable is the longest range whose calls are counted from all traces.
const joinable = time.Hour

// Calls counts the calls between services, from parents and children of other services.
// The counts of a range longer than an hour are extrapolated from one trace in so many
// hours, which bounds the memory of the join.
func (r *Reader) Calls(ctx context.Context, in Range) (found []Call, err error) {
	defer r.observe("calls")()
	if in, err = r.bounded(in); err != nil {
		return nil, err
	}
	every := int64((in.End.Sub(in.Start) + joinable - 1) / joinable)
	b := builder{}
	sampled := fmt.Sprintf("cityHash64(trace_id) %% %d = 0%s", every, b.within(in))
	query := fmt.Sprintf(`SELECT toString(p.service_name) AS client, toString(c.service_name) AS server, count() * %d
		FROM (SELECT trace_id, parent_span_id, service_name FROM %s.spans WHERE parent_span_id != '' AND %s) AS c
		INNER JOIN (SELECT trace_id, span_id, service_name FROM %[2]s.spans WHERE %[3]s) AS p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id
		WHERE p.service_name != c.service_name GROUP BY client, server ORDER BY client, server LIMIT %d`, every, r.database, sampled, maxEdges)
	if err := r.db.Query(ctx, query, func(scan func(...any) error) error {
		var c Call
		if err := scan(&c.Client, &c.Server, &c.Count); err != nil {
			return err
		}
		found = append(found, c)
		return nil
	}, b.args...); err != nil {
		return nil, err
	}
	const current = 15
	if r.now().Sub(in.End) > current*time.Minute {
		return found, nil
	}
	if some, err := r.hasFlows(ctx); err != nil || !some {
		return found, err
	}
	troubles, err := r.Troubles(ctx, current)
	if err != nil {
		return nil, err
	}
	for i, c := range found {
		for _, t := range troubles {
			if t.Client == c.Client && t.Server == c.Server {
				found[i].Verdict = t.Verdict
				break
			}
		}
	}
	return found, nil
}

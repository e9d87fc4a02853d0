package query

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Attributes of a span that say what the network did to its call.
const (
	AttributeVerdict     = "metaflow.network.verdict"
	AttributeWhy         = "metaflow.network.why"
	AttributeRetransmits = "metaflow.network.retransmits"
	AttributeRTT         = "metaflow.network.rtt_us"

	AttributePrefix = "metaflow.network." // of them all
)

// Clean is the verdict that the network did nothing wrong.
const Clean = "network clean"

// Network is what the network did to the call of a span, from the view trace_network.
type Network struct {
	Verdict     string `json:"verdict,omitempty"`   // empty if nothing is known
	Why         string `json:"why,omitempty"`       // what shows it
	Matched     string `json:"matched,omitempty"`   // how the connection was found
	Unmatched   string `json:"unmatched,omitempty"` // or why none was
	Evidence    string `json:"evidence,omitempty"`  // sample or interval
	Seen        string `json:"seen,omitempty"`      // which ends were seen
	Peer        string `json:"peer,omitempty"`      // service at the other end
	GapNanos    int64  `json:"gap_ns"`              // time of the call at the client that the server did not spend
	Connections uint64 `json:"connections"`
	Resets      uint64 `json:"resets"`
	Segments    uint64 `json:"segments_sent"`
	Retransmits uint64 `json:"retransmits"`
	RTTMicros   uint64 `json:"rtt_us"`
}

// AtFault reports whether the network, or a receiver that does not read, harmed the call.
func (n Network) AtFault() bool { return n.Verdict != "" && n.Verdict != Clean }

// Warning returns one sentence about a network at fault, or "".
func (n Network) Warning() string {
	switch {
	case !n.AtFault():
		return ""
	case n.Why == "":
		return "network: " + n.Verdict
	default:
		return "network: " + n.Verdict + ": " + n.Why
	}
}

// Network returns what the network did to the spans of a trace, by their ids.
func (r *Reader) Network(ctx context.Context, id string) (map[string]Network, error) {
	defer r.observe("trace_network")()
	found := map[string]Network{}
	b := builder{}
	query := fmt.Sprintf(`SELECT span_id, verdict, why, matched, unmatched, evidence, seen, peer_service_name, toInt64(gap_ns),
		toUInt64(connections), toUInt64(resets), toUInt64(segments_sent), toUInt64(retransmits), toUInt64(rtt_us)
		FROM %s.trace_network(trace_id = %s) LIMIT %d`, r.database, b.arg(id), r.cfg.MaxSpans)
	err := r.db.Query(ctx, query, func(scan func(...any) error) error {
		var span string
		var n Network
		if err := scan(&span, &n.Verdict, &n.Why, &n.Matched, &n.Unmatched, &n.Evidence, &n.Seen, &n.Peer, &n.GapNanos,
			&n.Connections, &n.Resets, &n.Segments, &n.Retransmits, &n.RTTMicros); err != nil {
			return err
		}
		found[span] = n
		return nil
	}, b.args...)
	return found, err
}

// networkContext returns the context of a look at the network.
func (r *Reader) networkContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.cfg.NetworkTimeout)
}

// tryNetwork is Network, or nothing if it fails or there is no flow data at all.
func (r *Reader) tryNetwork(ctx context.Context, id string) map[string]Network {
	if r.cfg.NetworkTimeout == 0 || !r.hasFlows(ctx) {
		return nil
	}
	found, err := r.Network(ctx, id)
	if err != nil {
		r.without.Inc()
		r.log.Debug("a trace is returned without what the network did", slog.String("trace_id", id), slog.Any("error", err))
		return nil
	}
	return found
}

// flowlessFor is how long it counts that no flow was stored. It spares installations
// without flow data the view, whose analysis alone takes ClickHouse longer than a trace.
const flowlessFor = time.Minute

func (r *Reader) hasFlows(ctx context.Context) bool {
	r.mu.Lock()
	known := r.now().Sub(r.flowless) < flowlessFor
	r.mu.Unlock()
	if known {
		return false
	}
	some := false
	err := r.db.Query(ctx, fmt.Sprintf("SELECT toUInt8(1) FROM %s.flows LIMIT 1", r.database), func(func(...any) error) error {
		some = true
		return nil
	})
	if err == nil && !some {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.flowless = r.now()
	}
	return some
}

// annotate adds the network's attributes to the spans of calls.
func (t *readTrace) annotate(network map[string]Network) {
	t.Network = network
	for id, n := range network {
		s, ok := t.spans[id]
		if !ok || n.Verdict == "" {
			continue
		}
		a := s.Attributes()
		a.PutStr(AttributeVerdict, n.Verdict)
		if n.Why != "" {
			a.PutStr(AttributeWhy, n.Why)
		}
		a.PutInt(AttributeRetransmits, int64(n.Retransmits))
		a.PutInt(AttributeRTT, int64(n.RTTMicros))
	}
}

package query

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
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

// Verdicts are the words of the view trace_network, in the order in which they decide.
var Verdicts = []string{
	"connect refused", "accept queue full", "connect failed", "reset", "timed out", "receiver's window full", "receiver does not read", "retransmission", "slow handshake",
	"slow queue", "slow network", "DNS failed", "slow DNS", Clean,
}

// SpanKey identifies a span in its trace. Senders such as Zipkin's give both ends of a call
// one id.
type SpanKey struct {
	ID   string // in hexadecimal digits
	Kind ptrace.SpanKind
}

// KeyOf returns the key of a span.
func KeyOf(s ptrace.Span) SpanKey { return SpanKey{s.SpanID().String(), s.Kind()} }

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

// Network returns what the network did to the spans of a trace, whose id is one that
// TraceID returned.
func (r *Reader) Network(ctx context.Context, id string) (map[SpanKey]Network, error) {
	defer r.observe("trace_network")()
	view, err := r.traceNetwork(ctx, id)
	if err != nil {
		return nil, err
	}
	found := map[SpanKey]Network{}
	query := fmt.Sprintf(`SELECT span_id, toInt32(kind), verdict, why, matched, unmatched, evidence, seen, peer_service_name, toInt64(gap_ns),
		toUInt64(connections), toUInt64(resets), toUInt64(segments_sent), toUInt64(retransmits), toUInt64(rtt_us)
		FROM %s LIMIT %d`, view, r.cfg.MaxSpans)
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var span string
		var kind int32
		var n Network
		if err := scan(&span, &kind, &n.Verdict, &n.Why, &n.Matched, &n.Unmatched, &n.Evidence, &n.Seen, &n.Peer, &n.GapNanos,
			&n.Connections, &n.Resets, &n.Segments, &n.Retransmits, &n.RTTMicros); err != nil {
			return err
		}
		found[SpanKey{span, ptrace.SpanKind(kind)}] = n
		return nil
	})
	return found, err
}

// viewFor is how long the text of the view counts: an upgrade replaces the view.
const viewFor = time.Minute

// traceNetwork returns the view trace_network of a trace, as a subquery. ClickHouse analyzes
// the text of a parameterized view once, and its name twice, which takes it longer than the
// answer itself. A user who may not see the text gets the name.
func (r *Reader) traceNetwork(ctx context.Context, id string) (string, error) {
	id, err := TraceID(id)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	text, known := r.view, r.now().Sub(r.viewRead) < viewFor
	r.mu.Unlock()
	if !known {
		b, read := builder{}, ""
		err := r.db.Query(ctx, fmt.Sprintf("SELECT as_select FROM system.tables WHERE database = %s AND name = 'trace_network'", b.arg(r.database)), func(scan func(...any) error) error {
			return scan(&read)
		}, b.args...)
		if err != nil {
			return "", err
		}
		r.mu.Lock()
		r.view, r.viewRead = read, r.now()
		r.mu.Unlock()
		text = read
	}
	if !strings.Contains(text, viewParameter) {
		return fmt.Sprintf("%s.trace_network(trace_id = '%s')", r.database, id), nil
	}
	return "(" + strings.ReplaceAll(text, viewParameter, "'"+id+"'") + ")", nil
}

// viewParameter is the view's parameter as ClickHouse writes it.
const viewParameter = "{trace_id:String}"

// networkContext returns the context of a look at the network.
func (r *Reader) networkContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.cfg.NetworkTimeout)
}

// tryNetwork is Network, or nothing if it fails or there is no flow data at all.
func (r *Reader) tryNetwork(ctx context.Context, id string) map[SpanKey]Network {
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
// without flow data the view, whose analysis alone takes ClickHouse longer than a trace. That
// some were stored counts for good: the view is right without any as well.
const flowlessFor = time.Minute

func (r *Reader) hasFlows(ctx context.Context) bool {
	r.mu.Lock()
	some, none := r.flows, r.now().Sub(r.flowless) < flowlessFor
	r.mu.Unlock()
	if some || none {
		return some
	}
	err := r.db.Query(ctx, fmt.Sprintf("SELECT toUInt8(1) FROM %s.flows LIMIT 1", r.database), func(func(...any) error) error {
		some = true
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if some {
		r.flows = true
	} else if err == nil {
		r.flowless = r.now()
	}
	return some
}

// annotate adds the network's attributes to the spans of calls.
func (t *readTrace) annotate(network map[SpanKey]Network) {
	t.Network = network
	for key, n := range network {
		if n.Verdict == "" {
			continue
		}
		for _, s := range t.spans[key] {
			a := s.Attributes()
			a.PutStr(AttributeVerdict, n.Verdict)
			if n.Why != "" {
				a.PutStr(AttributeWhy, n.Why)
			}
			a.PutInt(AttributeRetransmits, int64(n.Retransmits))
			a.PutInt(AttributeRTT, int64(n.RTTMicros))
		}
	}
}

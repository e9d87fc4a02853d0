package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/metaflowys/metaflow-server/pkg/fault"
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

// Verdicts are the words of the view traces_network, in the order in which they decide.
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

func (k SpanKey) compare(other SpanKey) int {
	return cmp.Or(cmp.Compare(k.ID, other.ID), cmp.Compare(k.Kind, other.Kind))
}

// KeyOf returns the key of a span.
func KeyOf(s ptrace.Span) SpanKey { return SpanKey{s.SpanID().String(), s.Kind()} }

// Network is what the network did to the call of a span, from the view traces_network.
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

// networks are what the network did to the spans of traces, by their ids.
type networks map[string]map[SpanKey]Network

// Network returns what the network did to the spans of a trace, whose id is one that
// TraceID returned.
func (r *Reader) Network(ctx context.Context, id string) (map[SpanKey]Network, error) {
	found, err := r.networks(ctx, []string{id})
	return found[id], err
}

// networks returns what the network did to the spans of traces, whose ids are ones that TraceID
// returned: one query for all. All of them are in the answer, even without any span.
func (r *Reader) networks(ctx context.Context, ids []string) (networks, error) {
	defer r.observe("trace_network")()
	view, err := r.tracesNetwork(ctx, ids)
	if err != nil {
		return nil, err
	}
	found := make(networks, len(ids))
	for _, id := range ids {
		found[id] = map[SpanKey]Network{}
	}
	query := fmt.Sprintf(`SELECT trace_id, span_id, toInt32(kind), verdict, why, matched, unmatched, evidence, seen, peer_service_name, toInt64(gap_ns),
		toUInt64(connections), toUInt64(resets), toUInt64(segments_sent), toUInt64(retransmits), toUInt64(rtt_us)
		FROM %s LIMIT %d BY trace_id`, view, r.cfg.MaxSpans)
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var trace, span string
		var kind int32
		var n Network
		if err := scan(&trace, &span, &kind, &n.Verdict, &n.Why, &n.Matched, &n.Unmatched, &n.Evidence, &n.Seen, &n.Peer, &n.GapNanos,
			&n.Connections, &n.Resets, &n.Segments, &n.Retransmits, &n.RTTMicros); err != nil {
			return err
		}
		if spans := found[trace]; spans != nil {
			spans[SpanKey{span, ptrace.SpanKind(kind)}] = n
		}
		return nil
	})
	return found, err
}

// candidate is a trace whose network may be looked at.
type candidate struct {
	id    string
	start time.Time
	spans int // about
}

func idsOf(of []candidate) []string {
	ids := make([]string, len(of))
	for i, t := range of {
		ids[i] = t.id
	}
	return ids
}

// Traces that one query looks at together. It reads the flows of all their ends for the time of
// all, so traces far apart cost more together than one by one. The view's analysis takes as long
// for one as for many.
const (
	tracesPerLook = 20
	spansPerLook  = 2000 // of several traces
	timePerLook   = 5 * time.Minute
)

// near returns the first trace with those that are looked at together with it, and the others.
// Both keep their order.
func near(of []candidate) (together, others []candidate) {
	spans := 0
	for i, t := range of {
		apart := t.start.Sub(of[0].start).Abs() > timePerLook/2
		if i > 0 && (apart || len(together) == tracesPerLook || spans+t.spans > spansPerLook) {
			others = append(others, t)
			continue
		}
		together = append(together, t)
		spans += t.spans
	}
	return together, others
}

// look is what was seen of the network of traces.
type look struct {
	networks networks // without those of traces that take more than a query may
	refused  error    // says of these why
}

// look looks at the network of traces together, or at fewer at a time where they take more
// than a query may. With an error it returns what was seen before.
func (r *Reader) look(ctx context.Context, of []candidate) (look, error) {
	found, err := r.networks(ctx, idsOf(of))
	switch {
	case err == nil:
		return look{networks: found}, nil
	case fault.ClassOf(err) != fault.Rejected || ctx.Err() != nil:
		return look{}, err
	case len(of) == 1:
		return look{refused: err}, nil
	}
	all := look{networks: networks{}}
	for half := range slices.Chunk(of, (len(of)+1)/2) {
		seen, err := r.look(ctx, half)
		maps.Copy(all.networks, seen.networks)
		all.refused = errors.Join(all.refused, seen.refused)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// viewFor is how long the text of the view counts: an upgrade replaces the view.
const viewFor = time.Minute

// tracesNetwork returns the view traces_network of traces, as a subquery. ClickHouse analyzes
// the text of a parameterized view once, and its name twice, which takes it longer than the
// answer itself. A user who may not see the text gets the name.
func (r *Reader) tracesNetwork(ctx context.Context, ids []string) (string, error) {
	quoted := make([]string, len(ids))
	for i, id := range ids {
		id, err := TraceID(id)
		if err != nil {
			return "", err
		}
		quoted[i] = "'" + id + "'"
	}
	list := "[" + strings.Join(quoted, ", ") + "]"
	r.mu.Lock()
	text, known := r.view, r.now().Sub(r.viewRead) < viewFor
	r.mu.Unlock()
	if !known {
		b, read := builder{}, ""
		err := r.db.Query(ctx, fmt.Sprintf("SELECT as_select FROM system.tables WHERE database = %s AND name = 'traces_network'", b.arg(r.database)), func(scan func(...any) error) error {
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
		return fmt.Sprintf("%s.traces_network(trace_ids = %s)", r.database, list), nil
	}
	return "(" + strings.ReplaceAll(text, viewParameter, list) + ")", nil
}

// viewParameter is the view's parameter as ClickHouse writes it.
const viewParameter = "{trace_ids:Array(String)}"

// tryNetworks looks at the network of traces, and waits for that long at most. It returns those
// that it has seen by then; none if there is no flow data at all.
func (r *Reader) tryNetworks(ctx context.Context, of []candidate, wait time.Duration) networks {
	if r.cfg.NetworkTimeout == 0 {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, wait)
	defer stop()
	if some, err := r.hasFlows(ctx); err == nil && !some {
		return nil
	}
	found := networks{}
	for rest := of; len(rest) > 0 && ctx.Err() == nil; {
		var batch []candidate
		batch, rest = near(rest)
		seen, err := r.look(ctx, batch)
		if err := cmp.Or(err, seen.refused); err != nil {
			r.log.Debug("traces are returned without what the network did", slog.String("first_trace_id", batch[0].id), slog.Any("error", err))
		}
		maps.Copy(found, seen.networks)
	}
	return found
}

// flowlessFor is how long it counts that no flow was stored. It spares installations
// without flow data the view, whose analysis alone takes ClickHouse longer than a trace. That
// some were stored counts for good: the view is right without any as well.
const flowlessFor = time.Minute

func (r *Reader) hasFlows(ctx context.Context) (bool, error) {
	r.mu.Lock()
	some, none := r.flows, r.now().Sub(r.flowless) < flowlessFor
	r.mu.Unlock()
	if some || none {
		return some, nil
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
	return some, err
}

// WorstOf returns the worst verdict of each trace by its id, the one that is first in Verdicts.
// Traces of whose network nothing is known are missing.
func (r *Reader) WorstOf(ctx context.Context, of []Summary) map[string]string {
	verdicts := map[string]string{}
	var unseen []Summary
	for _, t := range of {
		if t.Network != "" {
			verdicts[t.TraceID] = t.Network
		} else {
			unseen = append(unseen, t)
		}
	}
	for id, spans := range r.tryNetworks(ctx, candidates(unseen), r.cfg.NetworkTimeout) {
		if v := worst(spans); v != "" {
			verdicts[id] = v
		}
	}
	return verdicts
}

// worst returns the worst verdict, or "" if nothing is known.
func worst(spans map[SpanKey]Network) string {
	at := len(Verdicts)
	for _, n := range spans {
		if i := slices.Index(Verdicts, n.Verdict); i >= 0 {
			at = min(at, i)
		}
	}
	if at == len(Verdicts) {
		return ""
	}
	return Verdicts[at]
}

func candidates(of []Summary) []candidate {
	all := make([]candidate, len(of))
	for i, t := range of {
		all[i] = candidate{t.TraceID, t.Start, t.Spans}
	}
	return all
}

// annotate adds to traces what the network did to them, and returns how long it took.
func (r *Reader) annotate(ctx context.Context, found []*readTrace, of []Summary, wait time.Duration) time.Duration {
	began := time.Now()
	networks := r.tryNetworks(ctx, candidates(of), wait)
	for _, t := range found {
		r.add(networks, t)
	}
	return time.Since(began)
}

// add adds the network's attributes to the spans of calls. Without networks nobody looked.
func (r *Reader) add(seen networks, t *readTrace) {
	network, ok := seen[t.id]
	t.Network, t.NetworkMissing = network, seen != nil && !ok
	if t.NetworkMissing {
		r.without.Inc()
	}
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

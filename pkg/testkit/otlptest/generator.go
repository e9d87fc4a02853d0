// Package otlptest generates OTLP trace requests that look like those of the
// WebStore demo in a Kubernetes cluster: eleven services and a Redis cache, a
// few pods each, attributes of old and of current semantic conventions, with
// the sizes and cardinalities that decide what storing and moving spans costs.
//
// It is for tests and benchmarks. The same seed and options give the same bytes
// on every machine; changing what is generated changes the figures that were
// measured with it. A Generator belongs to one goroutine.
package otlptest

import (
	"math/rand/v2"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Composition is what a request is made of.
type Composition int

const (
	// CollectorBatch mixes all pods, as a collector's batch processor does, with
	// one ResourceSpans for each pod.
	CollectorBatch Composition = iota
	// ServiceBatch is what one SDK sends: the spans of one pod.
	ServiceBatch
)

// Options shape what is generated. The zero value is ready to use.
type Options struct {
	// Start is when the first trace begins. Zero means a fixed day in 2026.
	Start time.Time
	// SpansPerSecond is how fast the generated time advances. 0 means 1000.
	SpansPerSecond int
	// Composition is how spans are put together into requests.
	Composition Composition
}

// Generator makes an endless series of requests.
type Generator struct {
	rng         *rand.Rand
	composition Composition
	gap         time.Duration // mean time from one span to the next
	now         time.Time     // when the next trace begins
	pods        map[string][]*pod
	users       *rand.Zipf
	products    *rand.Zipf
	pending     []item // of CollectorBatch: generated and not yet in a request
	fullest     *pod   // of ServiceBatch: the pod with the most spans waiting
	previous    *tracepb.Span
}

// item is a span and the pod that recorded it.
type item struct {
	pod  *pod
	span *tracepb.Span
}

// New returns a Generator. Equal arguments give equal requests.
func New(seed uint64, o Options) *Generator {
	if o.Start.IsZero() {
		o.Start = time.Date(2026, time.June, 1, 12, 0, 0, 0, time.UTC)
	}
	if o.SpansPerSecond == 0 {
		o.SpansPerSecond = 1000
	}
	const stream = 0x6d657461666c6f77
	rng := rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // repeatable is the point
	return &Generator{
		rng:         rng,
		composition: o.Composition,
		gap:         time.Second / time.Duration(o.SpansPerSecond),
		now:         o.Start,
		pods:        newPods(rng, o.Start),
		users:       rand.NewZipf(rng, 1.1, 8, userCount-1),
		products:    rand.NewZipf(rng, 1.2, 4, productCount-1),
	}
}

// Request returns the next request, with exactly that many spans. The caller
// owns it, except that the resources and scopes are shared between requests.
func (g *Generator) Request(spans int) *coltracepb.ExportTraceServiceRequest {
	if g.composition == ServiceBatch {
		return g.serviceBatch(spans)
	}
	return g.collectorBatch(spans)
}

// RequestBytes is Request in protobuf.
func (g *Generator) RequestBytes(spans int) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(g.Request(spans))
	if err != nil {
		panic(err) // what this package builds can be marshalled
	}
	return b
}

func (g *Generator) collectorBatch(spans int) *coltracepb.ExportTraceServiceRequest {
	for len(g.pending) < spans {
		g.trace()
	}
	req := &coltracepb.ExportTraceServiceRequest{}
	groups := map[*pod]*tracepb.ScopeSpans{}
	for _, it := range g.pending[:spans] {
		group := groups[it.pod]
		if group == nil {
			rs := it.pod.resourceSpans()
			req.ResourceSpans = append(req.ResourceSpans, rs)
			group = rs.ScopeSpans[0]
			groups[it.pod] = group
		}
		group.Spans = append(group.Spans, it.span)
	}
	g.pending = append(g.pending[:0], g.pending[spans:]...)
	return req
}

func (g *Generator) serviceBatch(spans int) *coltracepb.ExportTraceServiceRequest {
	for g.fullest == nil || len(g.fullest.waiting) < spans {
		g.trace()
	}
	p := g.fullest
	rs := p.resourceSpans()
	rs.ScopeSpans[0].Spans = append(rs.ScopeSpans[0].Spans, p.waiting[:spans]...)
	p.waiting = append(p.waiting[:0], p.waiting[spans:]...)
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{rs}}
}

// record hands a finished span to the requests to come.
func (g *Generator) record(p *pod, span *tracepb.Span) {
	g.previous = span
	if g.composition == CollectorBatch {
		g.pending = append(g.pending, item{p, span})
		return
	}
	p.waiting = append(p.waiting, span)
	if g.fullest == nil || len(p.waiting) > len(g.fullest.waiting) {
		g.fullest = p
	}
}

// trace generates one trace and moves time on by what its spans take.
func (g *Generator) trace() {
	user := g.users.Uint64()
	t := &trace{
		g:       g,
		id:      g.bytes(16),
		user:    userID(user),
		session: sessionID(user),
		product: productID(g.products.Uint64()),
		order:   g.uuid(),
		client:  g.address(),
		agent:   userAgents[g.rng.IntN(len(userAgents))],
	}
	t.visit(g.page(), g.now)
	wait := time.Duration(g.rng.ExpFloat64() * float64(t.spans) * float64(g.gap))
	g.now = g.now.Add(wait)
}

// page picks what the visitor asks for.
func (g *Generator) page() page {
	total := 0
	for _, p := range pages {
		total += p.weight
	}
	n := g.rng.IntN(total)
	i := 0
	for ; n >= pages[i].weight; i++ {
		n -= pages[i].weight
	}
	return pages[i]
}

// Text returns an attribute.
func Text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// Number returns an attribute.
func Number(key string, value int) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: int64(value)}}}
}

func double(key string, value float64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: value}}}
}

func boolean(key string, value bool) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: value}}}
}

func list(key string, values ...string) *commonpb.KeyValue {
	array := &commonpb.ArrayValue{}
	for _, v := range values {
		array.Values = append(array.Values, &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}})
	}
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: array}}}
}

package otlptest

import (
	"fmt"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// errorPercent of the operations fail, and their callers see it.
const errorPercent = 2.4

// linkPercent of the server spans link to a span of an earlier trace.
const linkPercent = 0.5

// Flags of a sampled span, and those that also say whether the parent is remote.
const (
	flagsLocal  = 0x101
	flagsRemote = 0x301
)

// trace is one visit to a page.
type trace struct {
	g       *Generator
	id      []byte
	user    string
	session string
	product string
	order   string
	client  string // the visitor's address
	agent   string // the visitor's browser
	spans   int
}

// hop is a call from one process to another, as both sides describe it.
type hop struct {
	op           *operation
	from, to     *pod // from is nil for a visitor, to for Redis
	port         int  // the client's
	failed       bool
	path, url    string
	status, code int // HTTP, gRPC
}

func (t *trace) visit(p page, start time.Time) {
	h := t.hop(nil, p.op)
	if !p.load {
		t.serve(h, nil, start)
		return
	}
	h.from = t.pod("loadgenerator")
	t.request(h, nil, start)
}

// request records the client's span of h and, inside it, what the server does.
func (t *trace) request(h *hop, parent []byte, start time.Time) (end time.Time) {
	span := t.span(parent, tracepb.Span_SPAN_KIND_CLIENT, h.spanName(), start)
	wire := t.jitter(200 * time.Microsecond)
	if h.to == nil {
		end = start.Add(t.jitter(h.op.self))
	} else {
		end = t.serve(h, span.SpanId, start.Add(wire)).Add(wire)
	}
	span.Attributes = t.clientAttributes(h)
	t.finish(span, h, end)
	t.g.record(h.from, span)
	return end
}

// serve records the server's span of h and everything below it.
func (t *trace) serve(h *hop, parent []byte, start time.Time) (end time.Time) {
	span := t.span(parent, tracepb.Span_SPAN_KIND_SERVER, h.spanName(), start)
	span.Flags = flagsRemote
	if t.g.previous != nil && t.g.chance(linkPercent) {
		span.Links = []*tracepb.Span_Link{{
			TraceId:    t.g.previous.TraceId,
			SpanId:     t.g.previous.SpanId,
			Attributes: []*commonpb.KeyValue{Text("link.reason", "retry")},
		}}
	}
	end = start.Add(t.jitter(h.op.self) / 2)
	for _, c := range h.op.calls {
		for range c.min + t.g.rng.IntN(c.max-c.min+1) {
			below := t.hop(h.to, c.to)
			end = t.request(below, span.SpanId, end.Add(t.jitter(30*time.Microsecond)))
			h.failed = h.failed || below.failed && t.g.chance(30)
		}
	}
	if h.op.internal != "" {
		end = t.work(h, span.SpanId, end)
	}
	end = end.Add(t.jitter(h.op.self) / 2)
	h.settle()
	span.Attributes = t.serverAttributes(h)
	t.finish(span, h, end)
	t.g.record(h.to, span)
	return end
}

// work records an internal span of the server of h.
func (t *trace) work(h *hop, parent []byte, start time.Time) (end time.Time) {
	span := t.span(parent, tracepb.Span_SPAN_KIND_INTERNAL, h.op.internal, start)
	end = start.Add(t.jitter(h.op.self))
	span.EndTimeUnixNano = uint64(end.UnixNano())
	span.Attributes = append(t.own(h), t.code(h)...)
	if t.g.chance(30) {
		span.Events = append(span.Events, &tracepb.Span_Event{
			TimeUnixNano: uint64(start.UnixNano() + 1000),
			Name:         "prepared",
			Attributes:   []*commonpb.KeyValue{Number("app.items", 1+t.g.rng.IntN(9))},
		})
	}
	t.g.record(h.to, span)
	return end
}

func (t *trace) span(parent []byte, kind tracepb.Span_SpanKind, name string, start time.Time) *tracepb.Span {
	t.spans++
	return &tracepb.Span{
		TraceId:           t.id,
		SpanId:            t.g.bytes(8),
		ParentSpanId:      parent,
		Flags:             flagsLocal,
		Name:              name,
		Kind:              kind,
		StartTimeUnixNano: uint64(start.UnixNano()),
	}
}

// finish gives a span its end, status and, when it failed, the exception.
func (t *trace) finish(span *tracepb.Span, h *hop, end time.Time) {
	span.EndTimeUnixNano = uint64(end.UnixNano())
	if !h.failed {
		return
	}
	message := "context deadline exceeded while calling " + h.op.name
	span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: message}
	if span.Kind != tracepb.Span_SPAN_KIND_SERVER {
		return
	}
	span.Events = append(span.Events, &tracepb.Span_Event{
		TimeUnixNano: span.EndTimeUnixNano - 1000,
		Name:         "exception",
		Attributes: []*commonpb.KeyValue{
			Text("exception.type", "DeadlineExceeded"),
			Text("exception.message", message),
			Text("exception.stacktrace", strings.Repeat(fmt.Sprintf("at %s.handle(%s.go:%d)\n", h.to.service.name, h.to.service.name, 100+t.g.rng.IntN(20)), 6)),
		},
	})
}

func (t *trace) hop(from *pod, op *operation) *hop {
	h := &hop{op: op, from: from, port: t.g.ephemeral(), failed: t.g.chance(errorPercent)}
	if op.protocol != redisCall {
		h.to = t.pod(op.service)
	}
	h.path = strings.ReplaceAll(op.name, "{id}", t.product)
	if op.protocol == httpCall {
		h.url = fmt.Sprintf("http://%s:%d%s", op.service, h.to.service.port, h.path)
	}
	h.settle()
	return h
}

// settle fixes the status codes once it is known how the call ended.
func (h *hop) settle() {
	h.status, h.code = 200, 0
	if h.failed {
		h.status, h.code = 500, 4
	}
}

func (h *hop) spanName() string {
	if h.op.protocol == httpCall {
		return h.op.method + " " + h.op.name
	}
	return h.op.name
}

func (t *trace) pod(service string) *pod {
	pods := t.g.pods[service]
	return pods[t.g.rng.IntN(len(pods))]
}

// jitter spreads a typical time: mostly near it, now and then ten times it.
func (t *trace) jitter(typical time.Duration) time.Duration {
	d := float64(typical) * (0.6 + 0.6*t.g.rng.ExpFloat64())
	if t.g.chance(1) {
		d *= 10
	}
	return time.Duration(d)
}

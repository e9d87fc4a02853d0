package webstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/proto"
)

const (
	// exportTimeout bounds one export with all its retries. A busy receiver
	// answers UNAVAILABLE and recovers within a second or two.
	exportTimeout = 20 * time.Second
	// batchDelay is how long a span waits for its batch: less than the SDK's 5
	// s, so that the demo sees its spans soon.
	batchDelay = 500 * time.Millisecond
	// maxQueue bounds the spans queued for one exporter, about 1 kB each. While
	// it has room, a visitor never waits for the receiver, not even for a dead
	// one.
	maxQueue = 1 << 14
)

// retry starts sooner than the SDK's 5 s, which would delay the demo.
var retry = otlptracegrpc.RetryConfig{Enabled: true, InitialInterval: 200 * time.Millisecond, MaxInterval: 2 * time.Second, MaxElapsedTime: exportTimeout}

// propagator propagates the trace context as W3C traceparent.
var propagator propagation.TextMapPropagator = propagation.TraceContext{}

// Counts counts the spans of one service, or of all.
type Counts struct {
	// Ended counts the recorded spans.
	Ended int64
	// Acknowledged counts the spans that the receiver accepted.
	Acknowledged int64
	// Rejected counts the spans that the receiver rejected by partial success.
	Rejected int64
}

// Missing returns the number of spans without an answer from the receiver: in
// flight or, after Close, lost.
func (c Counts) Missing() int64 { return c.Ended - c.Acknowledged - c.Rejected }

// telemetry is the OpenTelemetry SDK of one service, with its own connection to
// the receiver.
type telemetry struct {
	provider *sdktrace.TracerProvider
	exporter sdktrace.SpanExporter
	close    func() error // closes the connection
	ledger   *ledger
}

// newTelemetry does not connect: the first export does. It sets everything that
// decides where spans go, so that the SDK's environment variables cannot change
// it. An endpoint with a scheme is an OTLP/HTTP URL, whose path is /v1/traces
// unless it has one; otherwise it is the host:port of an OTLP/gRPC receiver.
func newTelemetry(ctx context.Context, endpoint string, id identity) (*telemetry, error) {
	t := &telemetry{ledger: &ledger{}}
	res, err := id.resource(ctx)
	if err != nil {
		return nil, err
	}
	if strings.Contains(endpoint, "://") {
		err = t.exportOverHTTP(ctx, endpoint)
	} else {
		err = t.exportOverGRPC(ctx, endpoint)
	}
	if err != nil {
		return nil, fmt.Errorf("create exporter: %w", err)
	}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(res),
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithSpanProcessor(t.ledger),
		// Block when the queue is full: a demo that compares sent and stored
		// spans may become slow, but must not drop any.
		sdktrace.WithBatcher(t.exporter, sdktrace.WithBatchTimeout(batchDelay), sdktrace.WithExportTimeout(exportTimeout),
			sdktrace.WithMaxQueueSize(maxQueue), sdktrace.WithBlocking()),
	)
	return t, nil
}

func (t *telemetry) exportOverGRPC(ctx context.Context, endpoint string) error {
	conn, err := grpc.NewClient("passthrough:///"+endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)),
		grpc.WithUnaryInterceptor(t.ledger.intercept),
	)
	if err != nil {
		return err
	}
	t.close = conn.Close
	t.exporter, err = otlptracegrpc.New(ctx, otlptracegrpc.WithGRPCConn(conn), otlptracegrpc.WithTimeout(exportTimeout), otlptracegrpc.WithRetry(retry))
	if err != nil {
		_ = conn.Close() // never used
	}
	return err
}

func (t *telemetry) exportOverHTTP(ctx context.Context, endpoint string) (err error) {
	transport := &http.Transport{}
	t.close = func() error {
		transport.CloseIdleConnections()
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/v1/traces"
	}
	t.exporter, err = otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()),
		otlptracehttp.WithHTTPClient(&http.Client{Transport: &listener{transport, t.ledger}, Timeout: exportTimeout}),
		otlptracehttp.WithTimeout(exportTimeout), otlptracehttp.WithRetry(otlptracehttp.RetryConfig(retry)))
	return err
}

// shutdown exports what is left and closes the connection. If ctx ends first,
// it drops the rest. Either way the processor has ended when it returns.
func (t *telemetry) shutdown(ctx context.Context) error {
	// Without its exporter the processor fails at once to export what it still
	// holds.
	unhook := context.AfterFunc(ctx, func() { _ = t.exporter.Shutdown(ctx) })
	defer unhook()
	err := t.provider.Shutdown(context.WithoutCancel(ctx))
	if ctx.Err() != nil {
		err = errors.Join(err, fmt.Errorf("export the last spans: %w", context.Cause(ctx)))
	}
	return errors.Join(err, t.close())
}

// identity is what distinguishes a service from the others: a pod in a cluster.
type identity struct {
	service, pod, uid, node, ip string
}

func (id identity) resource(ctx context.Context) (*resource.Resource, error) {
	res, err := resource.New(ctx,
		resource.WithSchemaURL(semconv.SchemaURL),
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			semconv.ServiceName(id.service),
			semconv.ServiceNamespace(Namespace),
			semconv.ServiceInstanceID(id.pod),
			semconv.K8SClusterName(cluster),
			semconv.K8SNamespaceName(Namespace),
			semconv.K8SDeploymentName(id.service),
			semconv.K8SNodeName(id.node),
			semconv.K8SPodName(id.pod),
			semconv.K8SPodUID(id.uid),
			semconv.K8SPodIP(id.ip),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", id.service, err)
	}
	return res, nil
}

// ledger counts spans twice: when they end, as the first span processor, and
// when the receiver answers for them, on the wire. The SDK in between may lose
// some.
type ledger struct {
	ended, acknowledged, rejected atomic.Int64

	mu   sync.Mutex
	last error // last export error, for people
}

func (l *ledger) counts() Counts {
	// Read the acknowledged count first: a span that ends in between then
	// counts as missing for a moment, never as acknowledged before it ended.
	c := Counts{Acknowledged: l.acknowledged.Load(), Rejected: l.rejected.Load()}
	c.Ended = l.ended.Load()
	return c
}

func (l *ledger) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// intercept observes each attempt to export. A failed attempt counts for
// nothing: the exporter retries, and the receiver's last answer counts.
func (l *ledger) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	if err == nil {
		err = l.enter(req, reply)
		if err != nil {
			l.remember(err)
		}
		return nil // the exporter handles the partial success
	}
	l.remember(err)
	return err
}

// listener observes each attempt to export over HTTP.
type listener struct {
	next   http.RoundTripper
	ledger *ledger
}

// RoundTrip implements http.RoundTripper.
func (l *listener) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.exchange(req)
	if err != nil {
		l.ledger.remember(err)
	}
	return resp, err
}

// exchange counts the spans of an acknowledged request. The exporter sets
// GetBody for retries.
func (l *listener) exchange(req *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		// The exporter shows the body as it is, so it gets the text of the answer.
		answer := new(statuspb.Status)
		if proto.Unmarshal(text, answer) == nil && answer.GetMessage() != "" {
			text = []byte(answer.GetMessage())
		}
		l.ledger.remember(fmt.Errorf("the receiver answered %s: %.500s", resp.Status, text))
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if resp.StatusCode != http.StatusOK {
		return resp, nil
	}
	request, response := new(coltracepb.ExportTraceServiceRequest), new(coltracepb.ExportTraceServiceResponse)
	sent, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unmarshal(sent, request), proto.Unmarshal(text, response)); err != nil {
		return nil, err
	}
	if err := l.ledger.enter(request, response); err != nil {
		l.ledger.remember(err)
	}
	return resp, nil
}

func unmarshal(body io.ReadCloser, m proto.Message) error {
	text, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return err
	}
	return proto.Unmarshal(text, m)
}

// enter records the receiver's answer; it returns an error for a partial
// success.
func (l *ledger) enter(req, reply any) error {
	request, ok := req.(*coltracepb.ExportTraceServiceRequest)
	if !ok {
		return fmt.Errorf("read request: %T is not an export of traces", req)
	}
	response, ok := reply.(*coltracepb.ExportTraceServiceResponse)
	if !ok {
		return fmt.Errorf("read reply: %T does not answer an export of traces", reply)
	}
	rejected := response.GetPartialSuccess().GetRejectedSpans()
	l.rejected.Add(rejected)
	l.acknowledged.Add(spanCount(request) - rejected)
	if rejected != 0 {
		return fmt.Errorf("receiver rejected %d spans: %s", rejected, response.GetPartialSuccess().GetErrorMessage())
	}
	return nil
}

func (l *ledger) remember(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = err
}

func spanCount(req *coltracepb.ExportTraceServiceRequest) (n int64) {
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			n += int64(len(ss.GetSpans()))
		}
	}
	return n
}

// A ledger is the first span processor of its provider.

func (l *ledger) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (l *ledger) OnEnd(sdktrace.ReadOnlySpan)                     { l.ended.Add(1) }
func (l *ledger) Shutdown(context.Context) error                  { return nil }
func (l *ledger) ForceFlush(context.Context) error                { return nil }

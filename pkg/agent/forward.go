package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
	"github.com/metaflowys/metaflow-server/pkg/otlpgrpc"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/spool"
	"github.com/metaflowys/metaflow-server/pkg/upstream"
)

// Exporter sends requests to the servers. pkg/upstream satisfies it.
type Exporter interface {
	Export(ctx context.Context, body []byte, opts upstream.ExportOptions) (upstream.Result, error)
	// Ready tells whether some server can be reached at the moment.
	Ready() bool
	// WaitReady returns nil when one can be reached, or when ctx has ended its error.
	WaitReady(ctx context.Context) error
}

// Spool keeps requests on disk. pkg/spool satisfies it.
type Spool interface {
	Append(ctx context.Context, entry spool.Entry) error
	Next(ctx context.Context) (spool.Entry, error)
	Done(entry spool.Entry) error
	Return(entry spool.Entry)
	Len() int
}

// forwarder takes requests to a server, or to the spool.
type forwarder struct {
	up       Exporter
	spool    Spool
	codec    *codec
	log      *slog.Logger
	metrics  *metrics
	liveTime time.Duration
	host     netip.Addr // of this host as others see it; may be unknown
	config   atomic.Pointer[agentconfig.Config]
	group    atomic.Pointer[string] // name of the agent group, for errors
	rest     rest                   // while a server asked for one
	buffers  sync.Pool              // of *[]byte, for requests that an address is added to
}

// spoolFullDelay is what senders are asked to wait when the spool is full: room
// comes when the drainer has sent a segment of it, which takes seconds at least.
const spoolFullDelay = 10 * time.Second

// result is what becomes of the spans of one request that was acknowledged.
type result struct {
	rejected int64
	message  string
}

// consume acknowledges body with a nil error. It keeps nothing of body.
func (f *forwarder) consume(ctx context.Context, body []byte, peer netip.Addr) (result, error) {
	cfg := f.config.Load()
	if cfg.Integration.FeatureControl.TraceIntegrationDisabled {
		f.metrics.refused(reasonDisabled)
		return result{}, fault.As(fault.Rejected, fmt.Errorf(
			"traces are switched off: inputs.integration.feature_control.trace_integration_disabled is set for agent group %q", *f.group.Load()))
	}
	scratch, _ := f.buffers.Get().(*[]byte)
	if scratch == nil {
		scratch = new([]byte)
	}
	defer f.buffers.Put(scratch)
	out, added, err := otlp.AddHostAddress((*scratch)[:0], body, f.addressOf(peer).String())
	if err != nil {
		f.metrics.refused(reasonMalformed)
		return result{}, fault.As(fault.Rejected, fmt.Errorf("read ExportTraceServiceRequest: %w", err))
	}
	if added > 0 {
		*scratch = out
	}
	spans := otlp.Spans(out)
	f.metrics.received(spans, len(body))
	res, err := f.forward(ctx, out, spans, cfg)
	if err != nil {
		f.metrics.failed(spans)
	}
	return res, err
}

// addressOf is what is added as the address of a sender. Loopback is this host,
// but says so to nobody else.
func (f *forwarder) addressOf(peer netip.Addr) netip.Addr {
	peer = peer.Unmap()
	if peer.IsLoopback() && f.host.IsValid() {
		return f.host
	}
	return peer
}

// forward sends body to a server, and to the spool when no server takes it.
func (f *forwarder) forward(ctx context.Context, body []byte, spans int, cfg *agentconfig.Config) (result, error) {
	doubtful := false
	if f.up.Ready() && !f.rest.active() {
		live, cancel := context.WithTimeout(ctx, f.liveTime)
		res, err := f.up.Export(live, body, upstream.ExportOptions{Compress: cfg.Integration.Compression.Trace})
		cancel()
		switch {
		case err == nil:
			f.metrics.forwarded(pathLive, spans, res.Rejected)
			return result{res.Rejected, res.Message}, nil
		case fault.ClassOf(err) == fault.Rejected:
			f.metrics.refused(reasonServer)
			return result{}, err
		case ctx.Err() != nil: // the sender has gone, and will send again
			return result{}, err
		}
		f.rest.begin(err)
		doubtful = upstream.Doubtful(err)
	}
	err := f.spool.Append(ctx, spool.Entry{Body: f.codec.pack(body), Resend: doubtful, Received: time.Now()})
	switch {
	case err == nil:
		f.metrics.spooled(spans)
		return result{}, nil
	case errors.Is(err, spool.ErrFull):
		f.metrics.refused(reasonSpoolFull)
		return result{}, &busyError{fault.As(fault.Overload, errors.New("no server can be reached and the spool is full")), spoolFullDelay}
	default:
		f.metrics.refused(reasonSpoolBroken)
		f.log.ErrorContext(ctx, "a request could not be spooled", slog.Any("error", err))
		return result{}, &busyError{fault.As(fault.Overload, fmt.Errorf("no server can be reached, and the spool: %w", err)), spoolFullDelay}
	}
}

// busyError asks the sender to come back.
type busyError struct {
	error
	after time.Duration
}

func (e *busyError) Unwrap() error { return e.error }

// RetryAfter is how long the sender should wait.
func (e *busyError) RetryAfter() time.Duration { return e.after }

// rest is a pause that a server asked for: requests go straight to the spool.
type rest struct{ until atomic.Int64 }

func (r *rest) active() bool { return time.Now().UnixNano() < r.until.Load() }

// begin starts a rest when err asks for one.
func (r *rest) begin(err error) {
	if after, ok := upstream.RetryAfter(err); ok {
		r.until.Store(time.Now().Add(after).UnixNano())
	}
}

// wait returns when no rest is active, or with the error of ctx.
func (r *rest) wait(ctx context.Context) error {
	for {
		left := time.Until(time.Unix(0, r.until.Load()))
		if left <= 0 {
			return nil
		}
		if err := pause(ctx, left); err != nil {
			return err
		}
	}
}

// pause waits for d; it returns the error of ctx if that ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// overHTTP and overGRPC are the forwarder as the two receivers know it.
type (
	overHTTP struct{ *forwarder }
	overGRPC struct{ *forwarder }
)

func (f overHTTP) ConsumeTraces(ctx context.Context, req otlphttp.Request) (otlphttp.Result, error) {
	res, err := f.consume(ctx, req.Body, req.Peer.Addr())
	return otlphttp.Result{Rejected: res.rejected, Message: res.message}, err
}

func (f overGRPC) ConsumeTraces(ctx context.Context, req otlpgrpc.Request) (otlpgrpc.Result, error) {
	res, err := f.consume(ctx, req.Body, req.Peer.Addr())
	return otlpgrpc.Result{Rejected: res.rejected, Message: res.message}, err
}

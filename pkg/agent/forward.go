package agent

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// forwarder takes what the listeners receive into the pipe of spans.
type forwarder struct {
	*pipe
	host    netip.Addr // of this host as others see it; may be unknown
	config  atomic.Pointer[agentconfig.Config]
	group   atomic.Pointer[string] // name of the agent group, for errors
	buffers sync.Pool              // of *[]byte, for requests that an address is added to
}

// consume acknowledges body with a nil error. It keeps nothing of body.
func (f *forwarder) consume(ctx context.Context, body []byte, peer netip.Addr) (upstream.Result, error) {
	cfg := f.config.Load()
	if cfg.Integration.FeatureControl.TraceIntegrationDisabled {
		f.metrics.refuse(reasonDisabled)
		return upstream.Result{}, fault.As(fault.Rejected, fmt.Errorf(
			"traces are switched off: inputs.integration.feature_control.trace_integration_disabled is set for agent group %q", *f.group.Load()))
	}
	scratch, _ := f.buffers.Get().(*[]byte)
	if scratch == nil {
		scratch = new([]byte)
	}
	defer f.buffers.Put(scratch)
	out, added, err := traces.AddHostAddress((*scratch)[:0], body, f.addressOf(peer).String())
	if err != nil {
		f.metrics.refuse(reasonMalformed)
		return upstream.Result{}, fault.As(fault.Rejected, fmt.Errorf("read ExportTraceServiceRequest: %w", err))
	}
	if added > 0 {
		*scratch = out
	}
	return f.forward(ctx, out, f.count(out))
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

// overHTTP and overGRPC are the forwarder as the two receivers know it.
type (
	overHTTP struct{ *forwarder }
	overGRPC struct{ *forwarder }
)

func (f overHTTP) ConsumeTraces(ctx context.Context, req otlphttp.Request) (otlphttp.Result, error) {
	res, err := f.consume(ctx, req.Body, req.Peer.Addr())
	return otlphttp.Result{Rejected: res.Rejected, Message: res.Message}, err
}

func (f overGRPC) ConsumeTraces(ctx context.Context, req rpc.Request) (rpc.Result, error) {
	res, err := f.consume(ctx, req.Body, req.Peer.Addr())
	return rpc.Result{Rejected: res.Rejected, Message: res.Message}, err
}

// cutSpans is a cutter of trace requests.
func cutSpans(body []byte) (pieces [][]byte, rejected int64, message string, err error) {
	records, left, err := new(traces.Splitter).Cut(body, len(body)/2+1) // rare, and large: its memory is not kept
	for _, r := range records {
		pieces = append(pieces, r.Value)
	}
	if left.Total() > 0 {
		message = left.Message(signal.Anytime, len(body)/2+1)
	}
	return pieces, left.Total(), message, err
}

// siftSpans is a sifter of trace requests.
func siftSpans(body []byte) ([]byte, upstream.Result) {
	records, left, err := new(traces.Splitter).Cut(body, math.MaxInt)
	if err != nil || left.Total() == 0 {
		return body, upstream.Result{}
	}
	kept := []byte{}
	for _, r := range records { // one, or none
		kept = r.Value
	}
	return kept, upstream.Result{Rejected: left.Total(), Message: left.Message(signal.Anytime, math.MaxInt)}
}

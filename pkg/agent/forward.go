package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// forwarder forwards the requests of the listeners through the pipe of spans.
type forwarder struct {
	*pipe
	host    netip.Addr // this host's address as others see it; may be unknown
	config  atomic.Pointer[agentconfig.Config]
	group   atomic.Pointer[string] // the agent group's name, for errors
	buffers sync.Pool              // *[]byte, for requests to which an address is added
}

// Consume acknowledges the request with a nil error. It does not keep the
// request's body. Both OTLP receivers call it.
func (f *forwarder) Consume(ctx context.Context, req signal.Request) (signal.Result, error) {
	cfg := f.config.Load()
	if cfg.Integration.FeatureControl.TraceIntegrationDisabled {
		f.metrics.refuse(reasonDisabled)
		return signal.Result{}, fault.As(fault.Rejected, fmt.Errorf(
			"traces are disabled: inputs.integration.feature_control.trace_integration_disabled is set for agent group %q", *f.group.Load()))
	}
	scratch, _ := f.buffers.Get().(*[]byte)
	if scratch == nil {
		scratch = new([]byte)
	}
	defer f.buffers.Put(scratch)
	out, added, err := traces.AddHostAddress((*scratch)[:0], req.Body, f.addressOf(req.Peer.Addr()).String())
	if err != nil {
		f.metrics.refuse(reasonMalformed)
		return signal.Result{}, fault.As(fault.Rejected, fmt.Errorf("read ExportTraceServiceRequest: %w", err))
	}
	if added > 0 {
		*scratch = out
	}
	return f.forward(ctx, out, f.signal.Count(out))
}

// addressOf returns the address to add for a sender. Loopback means this host,
// but only on this host.
func (f *forwarder) addressOf(peer netip.Addr) netip.Addr {
	peer = peer.Unmap()
	if peer.IsLoopback() && f.host.IsValid() {
		return f.host
	}
	return peer
}

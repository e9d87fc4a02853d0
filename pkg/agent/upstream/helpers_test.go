package upstream_test

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(sinkListen); addr != "" {
		serveSink(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

// replica is one server with a configurable consumer.
type replica struct {
	addr string
	cfg  rpc.Config
	stop func() // stops the server gracefully and waits

	mu       sync.Mutex
	requests []signal.Request // bodies are copies
	answer   func(ctx context.Context, req signal.Request) (signal.Result, error)
}

func (r *replica) Consume(ctx context.Context, req signal.Request) (signal.Result, error) {
	r.mu.Lock()
	kept := req
	kept.Body = slices.Clone(req.Body)
	r.requests = append(r.requests, kept)
	answer := r.answer
	r.mu.Unlock()
	if answer == nil {
		return signal.Result{}, nil
	}
	return answer(ctx, req)
}

// answers sets what the consumer does; nil accepts everything.
func (r *replica) answers(f func(context.Context, signal.Request) (signal.Result, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = f
}

func (r *replica) received() []signal.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// newReplica starts a server on a free port of 127.0.0.1, or on cfg's.
func newReplica(t *testing.T, change func(*rpc.Config)) *replica {
	t.Helper()
	r := &replica{cfg: rpc.DefaultConfig()}
	r.cfg.Listen = ports.FreeAddress(t) // which start may take again
	if change != nil {
		change(&r.cfg)
	}
	r.start(t, rpc.Options{ShutdownGrace: time.Second})
	return r
}

// start serves; after stop it serves again on the same port.
func (r *replica) start(t *testing.T, opts rpc.Options) {
	t.Helper()
	srv, err := rpc.New(r.cfg, []rpc.Sink{{Signal: traces.Signal, Consumer: r}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = srv.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := srv.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.stop = func() {
		cancel()
		done.Wait()
	}
	t.Cleanup(r.stop)
}

func testConfig(addrs ...string) upstream.Config {
	cfg := upstream.DefaultConfig()
	cfg.Addresses = addrs
	cfg.Timeout = 10 * time.Second
	cfg.MaxBackoff = 100 * time.Millisecond
	return cfg
}

func newClient(t *testing.T, cfg upstream.Config, opts upstream.Options) *upstream.Client {
	t.Helper()
	c, err := upstream.New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func waitReady(t *testing.T, c *upstream.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait.Patience)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

func body() []byte { return otlptest.New(1, otlptest.Options{}).RequestBytes(8) }

package rpc_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(loadTarget); addr != "" {
		generateLoad(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

type consumerFunc func(context.Context, signal.Request) (signal.Result, error)

func (f consumerFunc) Consume(ctx context.Context, req signal.Request) (signal.Result, error) {
	return f(ctx, req)
}

var accept = consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
	return signal.Result{}, nil
})

func testConfig() rpc.Config {
	cfg := rpc.DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	return cfg
}

// running is a server with its Run in the background.
type running struct {
	*rpc.Server
	stop func()     // asks Run to end; does not wait
	done chan error // Run's result
}

// wait returns what Run returned.
func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(wait.Patience):
		t.Fatal("Run did not return")
		return nil
	}
}

// tracesTo and flowsTo are where the requests of one signal go.
func tracesTo(c rpc.Consumer) rpc.Sink { return rpc.Sink{Signal: traces.Signal, Consumer: c} }
func flowsTo(c rpc.Consumer) rpc.Sink  { return rpc.Sink{Signal: flows.Signal, Consumer: c} }

// start runs a server of traces, when there is a consumer of them, and of others.
func start(t *testing.T, cfg rpc.Config, consumer rpc.Consumer, opts rpc.Options, others ...rpc.Sink) *running {
	t.Helper()
	sinks := others
	if consumer != nil {
		sinks = append(sinks, tracesTo(consumer))
	}
	srv, err := rpc.New(cfg, sinks, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Server: srv, stop: cancel, done: make(chan error, 1)}
	var finished sync.WaitGroup
	finished.Go(func() { r.done <- srv.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		finished.Wait()
	})
	return r
}

func dial(t *testing.T, addr net.Addr, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	if len(opts) == 0 {
		opts = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	conn, err := grpc.NewClient(addr.String(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func client(t *testing.T, r *running) coltracepb.TraceServiceClient {
	t.Helper()
	return coltracepb.NewTraceServiceClient(dial(t, r.Addr()))
}

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// retryDelay returns the RetryInfo of err's status.
func retryDelay(err error) (delay time.Duration, ok bool) {
	for _, d := range status.Convert(err).Details() {
		if info, is := d.(*errdetails.RetryInfo); is {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

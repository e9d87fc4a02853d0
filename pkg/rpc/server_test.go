package rpc_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

const traceServiceName = "opentelemetry.proto.collector.trace.v1.TraceService"

func TestHealthSaysWhatWasSet(t *testing.T) {
	srv := start(t, testConfig(), accept, rpc.Options{})
	cli := healthpb.NewHealthClient(dial(t, srv.Addr()))
	for _, serving := range []bool{true, false, true} {
		srv.SetServing(serving)
		want := healthpb.HealthCheckResponse_NOT_SERVING
		if serving {
			want = healthpb.HealthCheckResponse_SERVING
		}
		for _, service := range []string{"", traceServiceName} {
			resp, err := cli.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err != nil || resp.Status != want {
				t.Errorf("health of %q = %v, %v, want %s", service, resp, err, want)
			}
		}
	}
}

func TestReflectionIsOffByDefault(t *testing.T) {
	stream, err := reflectionpb.NewServerReflectionClient(dial(t, start(t, testConfig(), accept, rpc.Options{}).Addr())).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection answers %v, want UNIMPLEMENTED", err)
	}
}

func TestReflectionDescribesTheTraceService(t *testing.T) {
	cfg := testConfig()
	cfg.Reflection = true
	srv := start(t, cfg, accept, rpc.Options{})
	stream, err := reflectionpb.NewServerReflectionClient(dial(t, srv.Addr())).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	listed := map[string]bool{}
	list := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	for _, s := range list.GetListServicesResponse().GetService() {
		listed[s.GetName()] = true
	}
	if !listed[traceServiceName] || !listed["grpc.health.v1.Health"] {
		t.Errorf("listed services: %v", listed)
	}
	files := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: traceServiceName,
	}}).GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(files) == 0 {
		t.Fatal("no file describes the service")
	}
	var file descriptorpb.FileDescriptorProto
	if err := proto.Unmarshal(files[0], &file); err != nil {
		t.Fatal(err)
	}
	if got := file.GetService()[0].GetMethod()[0].GetName(); got != "Export" {
		t.Errorf("method %q, want Export", got)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
}

func TestStopLetsARunningExportFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	consumer := consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		close(entered)
		<-release
		return signal.Result{}, ctx.Err()
	})
	srv := start(t, testConfig(), consumer, rpc.Options{})
	conn := dial(t, srv.Addr())
	watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	exported := make(chan error, 1)
	go func() {
		_, err := coltracepb.NewTraceServiceClient(conn).Export(t.Context(), otlptest.Sized(1000))
		exported <- err
	}()
	<-entered
	srv.stop()
	// The watch ends when the stop has begun: the export is still running.
	for err = nil; err == nil; _, err = watch.Recv() {
	}
	select {
	case err := <-exported:
		t.Fatalf("Export ended early: %v", err)
	case err := <-srv.done:
		t.Fatalf("Run returned %v while a request was running", err)
	default:
	}
	close(release)
	if err := <-exported; err != nil {
		t.Errorf("Export during a clean stop = %v", err)
	}
	if err := srv.wait(t); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	_, err = coltracepb.NewTraceServiceClient(conn).Export(t.Context(), otlptest.Sized(1000))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("Export to a stopped server = %v, want UNAVAILABLE", err)
	}
}

func TestStopCutsOffWhatOutlastsTheGrace(t *testing.T) {
	entered := make(chan struct{})
	consumer := consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		close(entered)
		<-ctx.Done()
		return signal.Result{}, ctx.Err()
	})
	srv := start(t, testConfig(), consumer, rpc.Options{ShutdownGrace: 50 * time.Millisecond})
	cli := client(t, srv)
	exported := make(chan error, 1)
	go func() {
		_, err := cli.Export(t.Context(), otlptest.Sized(1000))
		exported <- err
	}()
	<-entered
	srv.stop()
	if err := srv.wait(t); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if err := <-exported; status.Code(err) != codes.Unavailable {
		t.Errorf("the request cut off = %v, want UNAVAILABLE, so that it is sent again", err)
	}
}

// A client that gives up ends the consumer's context.
func TestClientsDeadlineReachesTheConsumer(t *testing.T) {
	var entered atomic.Int32
	ended := make(chan error, 20)
	consumer := consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		entered.Add(1)
		<-ctx.Done()
		ended <- ctx.Err()
		return signal.Result{}, ctx.Err()
	})
	cli := client(t, start(t, testConfig(), consumer, rpc.Options{}))
	for deadline := 50 * time.Millisecond; entered.Load() == 0; deadline *= 2 { // the call may be late already when it arrives
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		if _, err := cli.Export(ctx, otlptest.Sized(100)); status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("Export = %v, want DEADLINE_EXCEEDED", err)
		}
		cancel()
	}
	if err := <-ended; err == nil {
		t.Error("the consumer's context did not end")
	}
}

func TestOtherServicesShareThePort(t *testing.T) {
	calls := 0
	echo := grpc.ServiceDesc{
		ServiceName: "test.Echo",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(srv any, ctx context.Context, receive func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			req := new(healthpb.HealthCheckRequest)
			if err := receive(req); err != nil {
				return nil, err
			}
			return intercept(ctx, req, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
				calls++
				if calls == 1 {
					panic("first call")
				}
				return req, nil
			})
		}}},
	}
	srv := start(t, testConfig(), accept, rpc.Options{Services: []func(grpc.ServiceRegistrar){func(r grpc.ServiceRegistrar) { r.RegisterService(&echo, nil) }}})
	conn := dial(t, srv.Addr())
	var got healthpb.HealthCheckRequest
	err := conn.Invoke(t.Context(), "/test.Echo/Echo", &healthpb.HealthCheckRequest{Service: "hello"}, &got)
	if status.Code(err) != codes.Internal {
		t.Errorf("a call that panics = %v, want INTERNAL", err)
	}
	err = conn.Invoke(t.Context(), "/test.Echo/Echo", &healthpb.HealthCheckRequest{Service: "hello"}, &got)
	if err != nil || got.Service != "hello" {
		t.Errorf("Echo = %q, %v", got.Service, err)
	}
}

// A server of another role on this port takes no traces, and says so.
func TestWithoutAConsumer(t *testing.T) {
	srv := start(t, testConfig(), nil, rpc.Options{})
	conn := dial(t, srv.Addr())
	err := invokeRaw(t.Context(), conn, nil)
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("Export = %v, want UNIMPLEMENTED", err)
	}
	health, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || health.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health = %v, %v", health, err)
	}
}

func TestNewReportsWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := map[string]struct {
		change func(*rpc.Config)
		want   []string
	}{
		"port taken":         {func(c *rpc.Config) { c.Listen = taken.Addr().String() }, []string{"grpc.listen", "address already in use"}},
		"no certificate":     {func(c *rpc.Config) { c.TLS = tlsconfig.Server{CertFile: "/no/cert", KeyFile: "/no/key"} }, []string{"grpc.tls.cert_file", "/no/cert"}},
		"half a key pair":    {func(c *rpc.Config) { c.TLS.CertFile = "/no/cert" }, []string{`tls.cert_file and tls.key_file: "/no/cert" and ""`}},
		"a CA without TLS":   {func(c *rpc.Config) { c.TLS.ClientCAFile = "/no/ca" }, []string{"tls.client_ca_file"}},
		"every value absurd": {func(c *rpc.Config) { *c = rpc.Config{MaxBytesInFlight: -1} }, []string{"listen", "max_request_bytes: 0", "max_bytes_in_flight: -1", "max_requests_in_flight: 0", "max_concurrent_streams: 0", "retry_delay: 0s", "connection_age_grace: 0s", "keepalive.time: 0s", "keepalive.timeout: 0s", "keepalive.min_client_interval: 0s"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			tc.change(&cfg)
			srv, err := rpc.New(cfg, []rpc.Sink{tracesTo(accept)}, rpc.Options{})
			if err == nil {
				srv.Close()
				t.Fatal("New accepted it")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not name %q: %v", want, err)
				}
			}
		})
	}
}

func TestCloseReleasesThePortOfAServerThatNeverRan(t *testing.T) {
	addr := ports.FreeAddress(t)
	cfg := testConfig()
	cfg.Listen = addr
	srv, err := rpc.New(cfg, []rpc.Sink{tracesTo(accept)}, rpc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	l.Close()
}

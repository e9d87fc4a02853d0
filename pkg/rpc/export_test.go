package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/schema"
)

var compressions = []string{"identity", gzip.Name, "zstd", "snappy"}

func compressedBy(name string) []grpc.CallOption {
	if name == "identity" {
		return nil
	}
	return []grpc.CallOption{grpc.UseCompressor(name)}
}

func TestConsumerGetsTheBytesThatCame(t *testing.T) {
	var got []byte
	consumer := consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		got = bytes.Clone(req.Body)
		return signal.Result{}, nil
	})
	cli := client(t, start(t, testConfig(), consumer, rpc.Options{}))
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			// Small and large in turn: buffers are used again, and none may show
			// what an earlier request left in it.
			for _, size := range []int{1, 20_000, 500, 3_000_000, 70_000} {
				req := otlptest.Sized(size)
				resp, err := cli.Export(t.Context(), req, compressedBy(compression)...)
				if err != nil {
					t.Fatalf("Export of %d bytes: %v", size, err)
				}
				if resp.PartialSuccess != nil {
					t.Errorf("full success has partial_success %v", resp.PartialSuccess)
				}
				if !bytes.Equal(got, encoded(t, req)) {
					t.Errorf("consumer got %d bytes that are not the request's %d", len(got), proto.Size(req))
				}
			}
		})
	}
}

func TestConsumerGetsWhatTheMetadataSays(t *testing.T) {
	tests := map[string]struct {
		metadata   []string
		wantAgent  string
		wantResend bool
	}{
		"a plain SDK":                  {},
		"an agent's first delivery":    {[]string{schema.MetadataAgent, "node-7"}, "node-7", false},
		"an agent delivering again":    {[]string{schema.MetadataAgent, "node-7", schema.MetadataResend, "1"}, "node-7", true},
		"a value that is not a resend": {[]string{schema.MetadataResend, "0"}, "", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got signal.Request
			consumer := consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
				got = req
				return signal.Result{}, nil
			})
			cli := client(t, start(t, testConfig(), consumer, rpc.Options{}))
			var server peer.Peer
			ctx := metadata.AppendToOutgoingContext(t.Context(), tc.metadata...)
			if _, err := cli.Export(ctx, otlptest.Sized(100), grpc.Peer(&server)); err != nil {
				t.Fatal(err)
			}
			if got.Agent != tc.wantAgent || got.Resend != tc.wantResend {
				t.Errorf("agent %q, resend %t; want %q, %t", got.Agent, got.Resend, tc.wantAgent, tc.wantResend)
			}
			if want := netip.MustParseAddrPort(server.LocalAddr.String()); got.Peer != want {
				t.Errorf("peer %s, want the client's address %s", got.Peer, want)
			}
		})
	}
}

// usedUp is an error about a quota.
type usedUp struct{ error }

func (usedUp) ExhaustedFor() time.Duration { return time.Second }

func TestAnswerFollowsTheConsumer(t *testing.T) {
	cause := errors.New("write metaflow.spans: no leader")
	tests := map[string]struct {
		result    signal.Result
		err       error
		want      codes.Code
		wantRetry bool
		wantResp  *coltracepb.ExportTraceServiceResponse
	}{
		"a used-up quota": {err: fault.As(fault.Overload, usedUp{cause}), want: codes.ResourceExhausted, wantRetry: true},
		"all stored":      {want: codes.OK, wantResp: &coltracepb.ExportTraceServiceResponse{}},
		"some rejected": {
			result: signal.Result{Rejected: 3, Message: "3 spans with a zero trace id"},
			want:   codes.OK,
			wantResp: &coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{
				RejectedSpans: 3, ErrorMessage: "3 spans with a zero trace id",
			}},
		},
		"a warning that is not UTF-8": {
			result: signal.Result{Message: "clock \xff"},
			want:   codes.OK,
			wantResp: &coltracepb.ExportTraceServiceResponse{PartialSuccess: &coltracepb.ExportTracePartialSuccess{
				ErrorMessage: "clock ?",
			}},
		},
		"malformed":          {err: fault.As(fault.Rejected, cause), want: codes.InvalidArgument},
		"overloaded":         {err: fault.As(fault.Overload, cause), want: codes.Unavailable, wantRetry: true},
		"kafka away":         {err: fault.As(fault.Retryable, cause), want: codes.Unavailable, wantRetry: true},
		"unclassified":       {err: cause, want: codes.Unavailable, wantRetry: true},
		"fenced":             {err: fault.As(fault.Fenced, cause), want: codes.Unavailable, wantRetry: true},
		"a text too long":    {err: errors.New(strings.Repeat("x", 1<<20)), want: codes.Unavailable, wantRetry: true},
		"a text not UTF-8":   {err: errors.New("span \xff\xfe"), want: codes.Unavailable, wantRetry: true},
		"an unknown class":   {err: fault.As(fault.Class(99), cause), want: codes.Internal},
		"rejected, in UTF-8": {err: fault.As(fault.Rejected, errors.New("\xff")), want: codes.InvalidArgument},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			consumer := consumerFunc(func(context.Context, signal.Request) (signal.Result, error) { return tc.result, tc.err })
			cli := client(t, start(t, testConfig(), consumer, rpc.Options{Registerer: reg}))
			for _, compression := range compressions {
				resp, err := cli.Export(t.Context(), otlptest.Sized(100), compressedBy(compression)...)
				if got := status.Code(err); got != tc.want {
					t.Fatalf("%s: Export = %v, want %s", compression, err, tc.want)
				}
				if diff := cmp.Diff(tc.wantResp, resp, protocmp.Transform()); tc.wantResp != nil && diff != "" {
					t.Errorf("%s: response (-want +got):\n%s", compression, diff)
				}
				delay, ok := retryDelay(err)
				if ok != tc.wantRetry {
					t.Errorf("%s: RetryInfo present: %t, want %t", compression, ok, tc.wantRetry)
				}
				if mean := testConfig().RetryDelay; ok && (delay < mean/2 || delay > mean*3/2) {
					t.Errorf("%s: asked to retry after %s, want about %s", compression, delay, mean)
				}
			}
			if got := prom.Value(t, reg, "metaflow_gateway_requests_total", tc.want.String()); got != float64(len(compressions)) {
				t.Errorf("counted %v requests, want %d", got, len(compressions))
			}
			if got := prom.Value(t, reg, "metaflow_gateway_request_duration_seconds"); got != float64(len(compressions)) {
				t.Errorf("timed %v requests, want %d", got, len(compressions))
			}
		})
	}
}

func TestEmptyRequestSucceeds(t *testing.T) {
	consumer := consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		t.Error("consumer called for nothing")
		return signal.Result{}, nil
	})
	cli := client(t, start(t, testConfig(), consumer, rpc.Options{}))
	for _, compression := range compressions {
		resp, err := cli.Export(t.Context(), &coltracepb.ExportTraceServiceRequest{}, compressedBy(compression)...)
		if err != nil || resp.PartialSuccess != nil {
			t.Errorf("%s: Export = %v, %v, want full success", compression, resp, err)
		}
	}
}

// A consumer that panics costs its own request only.
func TestPanicIsInternalAndTheServerLives(t *testing.T) {
	reg := prometheus.NewRegistry()
	calls := 0
	consumer := consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		calls++
		if calls == 1 {
			panic("index out of range")
		}
		return signal.Result{}, nil
	})
	cli := client(t, start(t, testConfig(), consumer, rpc.Options{Registerer: reg}))
	_, err := cli.Export(t.Context(), otlptest.Sized(100))
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "index") {
		t.Errorf("Export = %v, want an INTERNAL that keeps the panic to itself", err)
	}
	if _, err := cli.Export(t.Context(), otlptest.Sized(100)); err != nil {
		t.Errorf("Export after a panic = %v", err)
	}
	if got := prom.Value(t, reg, "metaflow_gateway_panics_total"); got != 1 {
		t.Errorf("counted %v panics, want 1", got)
	}
	if got := prom.Value(t, reg, "metaflow_gateway_bytes_in_flight"); got != 0 {
		t.Errorf("%v bytes in flight after the panic, want 0", got)
	}
}

// The SDK's exporter waits for as long as RetryInfo says, and then delivers.
func TestSDKExporterRetriesWhenAsked(t *testing.T) {
	for _, compression := range []string{"none", "gzip"} {
		t.Run(compression, func(t *testing.T) {
			cfg := testConfig()
			cfg.RetryDelay = 20 * time.Millisecond
			var bodies [][]byte
			consumer := consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
				bodies = append(bodies, bytes.Clone(req.Body))
				if len(bodies) < 3 {
					return signal.Result{}, fault.As(fault.Overload, errors.New("broker busy"))
				}
				return signal.Result{}, nil
			})
			srv := start(t, cfg, consumer, rpc.Options{})
			exporter, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(srv.Addr().String()),
				otlptracegrpc.WithInsecure(), otlptracegrpc.WithCompressor(compression),
				otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
					Enabled: true, InitialInterval: time.Millisecond, MaxInterval: time.Millisecond, MaxElapsedTime: 10 * time.Second,
				}))
			if err != nil {
				t.Fatal(err)
			}
			provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
			_, span := provider.Tracer("shop").Start(t.Context(), "checkout")
			span.SetAttributes(attribute.Int("items", 3))
			span.End()
			if err := provider.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(bodies) != 3 {
				t.Fatalf("consumer was called %d times, want 3", len(bodies))
			}
			var got coltracepb.ExportTraceServiceRequest
			if err := proto.Unmarshal(bodies[2], &got); err != nil {
				t.Fatal(err)
			}
			if name := got.ResourceSpans[0].ScopeSpans[0].Spans[0].Name; name != "checkout" {
				t.Errorf("span %q arrived, want checkout", name)
			}
		})
	}
}

// someAuth lets everybody speak for every agent but one, and takes nobody for one of the installation who shows no token.
type someAuth struct{}

func (someAuth) Check(_ context.Context, agent string) error {
	if agent == "another's" {
		return status.Error(codes.PermissionDenied, "it is another's")
	}
	return nil
}

func (someAuth) Authenticated(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, schema.MetadataToken)) > 0
}

func TestTheMarkIsBelievedFromTheAuthenticated(t *testing.T) {
	var got signal.Request
	consumer := consumerFunc(func(_ context.Context, r signal.Request) (signal.Result, error) {
		got = r
		return signal.Result{}, nil
	})
	for name, tc := range map[string]struct {
		auth   rpc.Auth
		pairs  []string
		resend bool
	}{
		"without authentication": {nil, nil, true},
		"a stranger":             {someAuth{}, nil, false},
		"one of ours":            {someAuth{}, []string{schema.MetadataToken, "t"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), append(tc.pairs, schema.MetadataResend, "1")...)
			if _, err := client(t, start(t, testConfig(), consumer, rpc.Options{Auth: tc.auth})).Export(ctx, otlptest.Sized(100)); err != nil {
				t.Fatal(err)
			}
			if got.Resend != tc.resend {
				t.Errorf("resend is %v, want %v", got.Resend, tc.resend)
			}
		})
	}
}

func TestSpansUnderTheIDOfAnotherAreRefused(t *testing.T) {
	reg := prometheus.NewRegistry()
	cli := client(t, start(t, testConfig(), refuseAll(t), rpc.Options{Auth: someAuth{}, Registerer: reg}))
	ctx := metadata.AppendToOutgoingContext(t.Context(), schema.MetadataAgent, "another's")
	if _, err := cli.Export(ctx, otlptest.Sized(100)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Export = %v, want PERMISSION_DENIED", err)
	}
	if got := prom.Value(t, reg, "metaflow_grpc_unauthorized_calls_total", codes.PermissionDenied.String()); got != 1 {
		t.Errorf("counted %v", got)
	}
}

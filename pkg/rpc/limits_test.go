package rpc_test

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func refuseAll(t *testing.T) consumerFunc {
	return func(context.Context, signal.Request) (signal.Result, error) {
		t.Error("consumer called for a request that should have been refused")
		return signal.Result{}, nil
	}
}

func TestRequestOverTheLimitIsRefusedForGood(t *testing.T) {
	req := otlptest.Sized(100_000)
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxRequestBytes = int64(proto.Size(req))
			if _, err := client(t, start(t, cfg, accept, rpc.Options{})).Export(t.Context(), req, compressedBy(compression)...); err != nil {
				t.Errorf("Export of exactly the limit = %v", err)
			}
			cfg.MaxRequestBytes--
			reg := prometheus.NewRegistry()
			cli := client(t, start(t, cfg, refuseAll(t), rpc.Options{Registerer: reg}))
			_, err := cli.Export(t.Context(), req, compressedBy(compression)...)
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("Export of a byte more = %v, want RESOURCE_EXHAUSTED", err)
			}
			if _, ok := retryDelay(err); ok {
				t.Error("a request that will never fit was answered with RetryInfo")
			}
			// gRPC may send the status before the call returns and is counted.
			wait.Until(t, "the refusal is counted", func() bool {
				return prom.Value(t, reg, "metaflow_gateway_requests_total", codes.ResourceExhausted.String()) == 1
			})
		})
	}
}

// A length prefix alone claims 60 MiB; none of them may be set aside for it.
func TestClaimedLengthCostsNothing(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestBytes, cfg.MaxBytesInFlight = 1<<20, 4<<20
	conn := dial(t, start(t, cfg, refuseAll(t), rpc.Options{}).Addr())
	body := make([]byte, 60<<20)
	before := allocated()
	err := invokeRaw(t.Context(), conn, body)
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("Export = %v, want RESOURCE_EXHAUSTED", err)
	}
	if grew := allocated() - before; grew > 8<<20 {
		t.Errorf("refusing 60 MiB allocated %d MiB in client and server", grew>>20)
	}
}

func TestCompressionBombCostsAtMostTheLimit(t *testing.T) {
	const bombBytes = 256 << 20
	bombs := map[string][]byte{
		"gzip": bomb(t, bombBytes, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }),
		"zstd": bomb(t, bombBytes, func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
			if err != nil {
				t.Fatal(err)
			}
			return z
		}),
	}
	for compression, compressed := range bombs {
		t.Run(compression, func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxRequestBytes = 4 << 20
			conn := dialPrecompressed(t, start(t, cfg, refuseAll(t), rpc.Options{}), compression)
			before := allocated()
			err := invokeRaw(t.Context(), conn, compressed)
			if status.Code(err) != codes.ResourceExhausted {
				t.Fatalf("Export = %v, want RESOURCE_EXHAUSTED", err)
			}
			if _, ok := retryDelay(err); ok {
				t.Error("a bomb was answered with RetryInfo")
			}
			// The limit, the window, and what gRPC's own buffers round up to.
			if grew := allocated() - before; grew > 32<<20 {
				t.Errorf("a bomb of %d KiB allocated %d MiB, limit 4 MiB", len(compressed)>>10, grew>>20)
			}
		})
	}
}

// A zstd frame names the window that its decoder has to hold. One of 2 GiB is
// refused, whatever the frame contains.
func TestZstdWindowIsBounded(t *testing.T) {
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3} // no content size, window of 1<<(10+21)
	frame = append(frame, 0x01, 0x00, 0x00)                // last block, raw, empty
	conn := dialPrecompressed(t, start(t, testConfig(), refuseAll(t), rpc.Options{}), "zstd")
	before := allocated()
	err := invokeRaw(t.Context(), conn, frame)
	if status.Code(err) != codes.Internal {
		t.Errorf("Export = %v, want INTERNAL", err)
	}
	if grew := allocated() - before; grew > 32<<20 {
		t.Errorf("the frame allocated %d MiB", grew>>20)
	}
}

func TestBrokenCallsAreClearErrors(t *testing.T) {
	gzipped := bomb(t, 1000, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	tests := map[string]struct {
		body     []byte
		encoding string
		codec    string
		want     codes.Code
		text     string
	}{
		"not gzip at all":       {[]byte("hello"), "gzip", "proto", codes.Internal, "decompress"},
		"gzip cut short":        {gzipped[:len(gzipped)-9], "gzip", "proto", codes.Internal, "decompress"},
		"not zstd at all":       {[]byte("hello"), "zstd", "proto", codes.Internal, "decompress"},
		"not snappy at all":     {[]byte("hello"), "snappy", "proto", codes.Internal, "decompress"},
		"unknown encoding":      {[]byte("hello"), "lzma", "proto", codes.Unimplemented, "lzma"},
		"JSON instead of bytes": {[]byte("{}"), "identity", "json", codes.Unimplemented, "application/grpc+json"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			srv := start(t, testConfig(), accept, rpc.Options{})
			conn := dialPrecompressed(t, srv, tc.encoding)
			for range 3 { // pooled decoders survive what broke them
				err := invokeRaw(t.Context(), conn, tc.body, grpc.ForceCodec(otlptest.RawCodec(tc.codec)))
				if status.Code(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("Export = %v, want %s naming %q", err, tc.want, tc.text)
				}
			}
			for _, compression := range compressions {
				if _, err := client(t, srv).Export(t.Context(), otlptest.Sized(1000), compressedBy(compression)...); err != nil {
					t.Errorf("%s export afterwards = %v", compression, err)
				}
			}
		})
	}
}

// While requests up to a bound are being consumed, the next is refused at once,
// and accepted again as soon as one of them is answered.
func TestOverTheBoundClientsAreAskedToComeBack(t *testing.T) {
	tests := map[string]struct {
		bound func(*rpc.Config)
		label string
	}{
		"requests in flight": {func(c *rpc.Config) { c.MaxRequestsInFlight = 1 }, "requests_in_flight"},
		"bytes in flight": {func(c *rpc.Config) {
			c.MaxRequestBytes, c.MaxBytesInFlight = 1<<20, 1<<20
		}, "bytes_in_flight"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			tc.bound(&cfg)
			entered, release := make(chan struct{}), make(chan struct{})
			consumer := consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
				entered <- struct{}{}
				<-release
				return signal.Result{}, nil
			})
			reg := prometheus.NewRegistry()
			srv := start(t, cfg, consumer, rpc.Options{Registerer: reg})
			t.Cleanup(func() { close(release) }) // the server waits for the consumer when it stops
			cli := client(t, srv)
			first := make(chan error, 1)
			export := func() { _, err := cli.Export(t.Context(), otlptest.Sized(600_000)); first <- err }
			go export()
			<-entered

			began := time.Now()
			_, err := cli.Export(t.Context(), otlptest.Sized(600_000))
			if status.Code(err) != codes.Unavailable {
				t.Fatalf("Export over the bound = %v, want UNAVAILABLE", err)
			}
			if _, ok := retryDelay(err); !ok {
				t.Error("no RetryInfo: the client would drop the spans or hammer the server")
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the refusal took %s", took)
			}
			release <- struct{}{}
			if err := <-first; err != nil {
				t.Errorf("the request within the bound = %v", err)
			}
			go export()
			<-entered
			release <- struct{}{}
			if err := <-first; err != nil {
				t.Errorf("Export after the bound was left = %v", err)
			}
			if got := prom.Value(t, reg, "metaflow_gateway_refused_requests_total", tc.label); got != 1 {
				t.Errorf("counted %v refusals by %s, want 1", got, tc.label)
			}
			for _, gauge := range []string{"metaflow_gateway_bytes_in_flight", "metaflow_gateway_requests_in_flight"} {
				if got := prom.Value(t, reg, gauge); got != 0 {
					t.Errorf("%s is %v when nothing is in flight", gauge, got)
				}
			}
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// bomb compresses zeros.
func bomb(t *testing.T, size int, newWriter func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var out bytes.Buffer
	w := newWriter(&out)
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n := min(size, len(zeros))
		if _, err := w.Write(zeros[:n]); err != nil {
			t.Fatal(err)
		}
		size -= n
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func invokeRaw(ctx context.Context, conn *grpc.ClientConn, body []byte, opts ...grpc.CallOption) error {
	var reply []byte
	opts = append([]grpc.CallOption{grpc.ForceCodec(otlptest.Raw)}, opts...)
	return conn.Invoke(ctx, coltracepb.TraceService_Export_FullMethodName, body, &reply, opts...)
}

func dialPrecompressed(t *testing.T, srv *running, encoding string) *grpc.ClientConn {
	t.Helper()
	opts := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if encoding != "identity" {
		//nolint:staticcheck // the successor finds compressors by name, and could not send what is broken
		opts = append(opts, grpc.WithCompressor(otlptest.Precompressed(encoding)))
	}
	return dial(t, srv.Addr(), opts...)
}

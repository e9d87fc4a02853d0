package rpc_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The load comes from a process of its own, this test binary run with these
// variables, so that CPU time and allocations measured here are the server's.
const (
	loadTarget      = "OTLPGRPC_LOAD_TARGET"
	loadCompression = "OTLPGRPC_LOAD_COMPRESSION"
	spansPerRequest = 512 // the batch of an SDK
)

// BenchmarkExport measures what receiving costs, with a consumer that does
// nothing.
func BenchmarkExport(b *testing.B) {
	for _, compression := range compressions {
		b.Run(compression, func(b *testing.B) { benchmarkExport(b, compression) })
	}
}

func benchmarkExport(b *testing.B, compression string) {
	received := make(chan int)
	consumer := consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		received <- len(req.Body)
		return signal.Result{}, nil
	})
	srv, err := rpc.New(testConfig(), []rpc.Sink{tracesTo(consumer)}, rpc.Options{ShutdownGrace: time.Nanosecond})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()

	load := exec.Command(os.Args[0])
	load.Env = append(os.Environ(), loadTarget+"="+srv.Addr().String(), loadCompression+"="+compression)
	load.Stderr = os.Stderr
	alive, err := load.StdinPipe() // closed when this process ends, however it does
	if err != nil {
		b.Fatal(err)
	}
	defer alive.Close()
	if err := load.Start(); err != nil {
		b.Fatal(err)
	}
	for range 200 { // connections, pools and flow control windows warm up
		<-received
	}

	b.ReportAllocs()
	before := cputime.Used(b)
	for b.Loop() {
		b.SetBytes(int64(<-received))
	}
	used := cputime.Used(b) - before
	spans := float64(b.N * spansPerRequest)
	b.ReportMetric(float64(used.Nanoseconds())/1e3/spans, "cpu-us/span")
	b.ReportMetric(spans/b.Elapsed().Seconds(), "spans/s")

	if err := load.Process.Kill(); err != nil {
		b.Error(err)
	}
	_ = load.Wait() // killed: its status says so
	cancel()
	for {
		select {
		case <-received:
		case err := <-done:
			if err != nil {
				b.Error(err)
			}
			return
		}
	}
}

// generateLoad sends requests over four connections until standard input ends.
func generateLoad(addr string) {
	gen := otlptest.New(1, otlptest.Options{})
	var reqs [][]byte
	for range 8 {
		reqs = append(reqs, gen.RequestBytes(spansPerRequest))
	}
	var opts []grpc.CallOption
	if c := os.Getenv(loadCompression); c != "identity" {
		opts = append(opts, grpc.UseCompressor(c))
	}
	for range 4 {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			for i := 0; ; i++ {
				if err := invokeRaw(context.Background(), conn, reqs[i%len(reqs)], opts...); err != nil {
					return
				}
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

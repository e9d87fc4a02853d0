package upstream_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The server runs in its own process, this test binary run with this variable,
// so that the CPU time measured here is the client's.
const (
	sinkListen      = "UPSTREAM_SINK_LISTEN"
	spansPerRequest = 512 // batch size of an SDK
	benchSenders    = 4
)

// BenchmarkExport measures the cost of sending.
func BenchmarkExport(b *testing.B) {
	b.Run("identity", func(b *testing.B) { benchmarkExport(b, upstream.ExportOptions{}) })
	b.Run("zstd", func(b *testing.B) { benchmarkExport(b, upstream.ExportOptions{Compress: true}) })
}

func benchmarkExport(b *testing.B, opts upstream.ExportOptions) {
	addr := startSink(b)
	c, err := upstream.New(testConfig(addr), upstream.Options{AgentID: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(b.Context()); err != nil {
		b.Fatal(err)
	}
	gen := otlptest.New(1, otlptest.Options{})
	var reqs [][]byte
	for range 8 {
		reqs = append(reqs, gen.RequestBytes(spansPerRequest))
	}
	for i := range 100 { // warm up pools and flow control windows
		if _, err := c.Export(b.Context(), traces.Signal, reqs[i%len(reqs)], opts); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(reqs[0])))
	b.ReportAllocs()
	b.ResetTimer()
	before := cputime.Used(b)
	var next atomic.Int64
	var senders sync.WaitGroup
	for range benchSenders {
		senders.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if _, err := c.Export(context.Background(), traces.Signal, reqs[i%8], opts); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	senders.Wait()
	used := cputime.Used(b) - before
	spans := float64(b.N * spansPerRequest)
	b.ReportMetric(float64(used.Nanoseconds())/1e3/spans, "cpu-us/span")
	b.ReportMetric(spans/b.Elapsed().Seconds(), "spans/s")
}

// startSink returns the address of a server that accepts everything.
func startSink(b *testing.B) string {
	sink := exec.Command(os.Args[0])
	sink.Env = append(os.Environ(), sinkListen+"=127.0.0.1:0")
	sink.Stderr = os.Stderr
	alive, err := sink.StdinPipe() // closed whenever this process ends
	if err != nil {
		b.Fatal(err)
	}
	out, err := sink.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := sink.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		alive.Close()
		_ = sink.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

type sink struct{}

func (sink) Consume(context.Context, signal.Request) (signal.Result, error) {
	return signal.Result{}, nil
}

// serveSink serves until standard input ends.
func serveSink(addr string) {
	cfg := rpc.DefaultConfig()
	cfg.Listen = addr
	srv, err := rpc.New(cfg, []rpc.Sink{{Signal: traces.Signal, Consumer: sink{}}}, rpc.Options{ShutdownGrace: time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(srv.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	_ = srv.Run(ctx)
}

package otlphttp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The load comes from a separate process, this test binary run with these variables, so
// the CPU time and allocations measured here are the server's.
const (
	loadTarget      = "OTLPHTTP_LOAD_TARGET"
	loadEncoding    = "OTLPHTTP_LOAD_ENCODING"
	spansPerRequest = 512 // a typical batch of an SDK
)

// BenchmarkReceive measures the cost of receiving, with a consumer that does nothing and
// with one that does what an agent does for every request.
func BenchmarkReceive(b *testing.B) {
	ignore := func(signal.Request) error { return nil }
	buffers := make(chan []byte, 64)
	address := func(req signal.Request) error {
		var buffer []byte
		select {
		case buffer = <-buffers:
		default:
		}
		out, added, err := traces.AddHostAddress(buffer[:0], req.Body, "10.1.2.3")
		if added > 0 {
			buffer = out
		}
		buffers <- buffer
		return err
	}
	for name, consume := range map[string]func(signal.Request) error{"ignore": ignore, "address": address} {
		for _, encoding := range []string{"identity", "gzip"} {
			b.Run(name+"/"+encoding, func(b *testing.B) { benchmarkReceive(b, encoding, consume) })
		}
	}
}

func benchmarkReceive(b *testing.B, encoding string, consume func(signal.Request) error) {
	received := make(chan int)
	cfg := testConfig()
	srv, err := otlphttp.New(cfg, consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		err := consume(req)
		received <- len(req.Body)
		return signal.Result{}, err
	}), otlphttp.Options{ShutdownGrace: time.Nanosecond})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()

	load := exec.Command(os.Args[0])
	load.Env = append(os.Environ(), loadTarget+"="+srv.Addr().String(), loadEncoding+"="+encoding)
	load.Stderr = os.Stderr
	alive, err := load.StdinPipe() // closes when this process ends, however it ends
	if err != nil {
		b.Fatal(err)
	}
	defer alive.Close()
	if err := load.Start(); err != nil {
		b.Fatal(err)
	}
	for range 200 { // warm up connections and pools
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
	_ = load.Wait() // the load was killed, so its status is an error
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

// generateLoad sends requests over four connections until standard input closes.
func generateLoad(addr string) {
	gen := otlptest.New(1, otlptest.Options{})
	encoding := os.Getenv(loadEncoding)
	var reqs [][]byte
	for range 8 {
		body := gen.RequestBytes(spansPerRequest)
		if encoding == "gzip" {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, _ = w.Write(body)
			_ = w.Close()
			body = out.Bytes()
		}
		reqs = append(reqs, body)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true}}
	for range 4 {
		go func() {
			for i := 0; ; i++ {
				req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/v1/traces", bytes.NewReader(reqs[i%len(reqs)]))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				req.Header.Set("Content-Type", "application/x-protobuf")
				req.Header.Set("Content-Encoding", encoding)
				resp, err := client.Do(req)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// Command agentbench measures the agent's cost of forwarding a span. It posts
// requests over OTLP/HTTP, uncompressed, to an agent that forwards them over
// gRPC to a sink in its own process, and reads what the operating system
// accounts to the agent.
//
//	go run ./integration/bench/agent -agent bin/metaflow-agent
//
// With -collector an OpenTelemetry Collector does the same (otlp receiver over
// HTTP to otlp exporter, no batching, no queue) in the same run, so that the
// ratio holds on a noisy machine. `make collector` builds one.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

type options struct {
	agent, collector, http string
	spans, batch, senders  int
	rate                   int
	verbose                bool
}

func main() {
	measured.MaybeServe(sinkVariable, serveSink)
	var o options
	flag.StringVar(&o.agent, "agent", "bin/metaflow-agent", "the agent `program`")
	flag.StringVar(&o.collector, "collector", "", "a collector `program` to compare with; if empty, none")
	flag.IntVar(&o.spans, "spans", 2_000_000, "spans to send as fast as possible")
	flag.IntVar(&o.batch, "batch", 512, "spans in one request")
	flag.IntVar(&o.senders, "senders", 4, "requests at a time")
	flag.IntVar(&o.rate, "rate", 20_000, "spans per second of the second part, which measures resident memory")
	flag.StringVar(&o.http, "agent-http", "127.0.0.1:0", "address of the agent's /metrics, and of profiles with METAFLOW_HTTP_PPROF=true")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs log")
	measured.Main("agentbench", func(ctx context.Context) error { return run(ctx, o) })
}

// figures are the costs of one program.
type figures struct {
	name   string
	full   float64 // CPU microseconds per span, as fast as possible
	paced  float64 // CPU microseconds per span at the given rate
	rss    int64   // peak resident bytes at the given rate
	second float64 // spans per second, as fast as possible
}

// steadyFor is how long the rate is held.
const steadyFor = 15 * time.Second

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "agentbench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	load := requests(o)
	programs := []func(dir string) (*target, error){func(dir string) (*target, error) { return startAgent(ctx, o, dir) }}
	if o.collector != "" {
		programs = append(programs, func(dir string) (*target, error) { return startCollector(ctx, o, dir) })
	}
	var all []figures
	for i, p := range programs {
		sub := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			return err
		}
		f, err := measure(ctx, o, sub, p, load)
		if err != nil {
			return err
		}
		all = append(all, f)
	}
	report(o, all)
	return nil
}

// requests returns a second's worth of distinct requests, which are sent
// repeatedly.
func requests(o options) [][]byte {
	g := otlptest.New(1, otlptest.Options{Start: time.Now().Add(-time.Minute), SpansPerSecond: 20_000})
	all := make([][]byte, 40)
	for i := range all {
		all[i] = g.RequestBytes(o.batch)
	}
	return all
}

// measure runs a program twice: once at its limit, then a fresh one at the
// given rate.
func measure(ctx context.Context, o options, dir string, start func(dir string) (*target, error), load [][]byte) (f figures, err error) {
	t, err := start(dir)
	if err != nil {
		return f, err
	}
	f.name = t.name
	measured.Progress("%s: %d spans as fast as possible", t.name, o.spans)
	cpu, took, _, err := t.drive(ctx, load, o, o.spans, 0)
	t.stop()
	if err != nil {
		return f, err
	}
	f.full, f.second = measured.MicrosEach(cpu, o.spans), float64(o.spans)/took.Seconds()

	if t, err = start(dir); err != nil {
		return f, err
	}
	defer t.stop()
	spans := o.rate * int(steadyFor.Seconds())
	measured.Progress("%s: %d spans a second for %s", t.name, o.rate, steadyFor)
	cpu, _, f.rss, err = t.drive(ctx, load, o, spans, o.rate)
	f.paced = measured.MicrosEach(cpu, spans)
	return f, err
}

// target is a program under load, with the sink behind it.
type target struct {
	name    string
	url     string
	program *measured.Process
	sink    *measured.Process
}

func (t *target) stop() {
	t.program.Stop()
	t.sink.Stop()
}

// drive sends the load and returns its cost.
func (t *target) drive(ctx context.Context, load [][]byte, o options, spans, rate int) (cpu, took time.Duration, rss int64, err error) {
	before, err := t.program.Usage()
	if err != nil {
		return 0, 0, 0, err
	}
	begun := time.Now()
	if err := post(ctx, t.url, load, spans/o.batch, o.senders, float64(rate)/float64(o.batch)); err != nil {
		return 0, 0, 0, fmt.Errorf("%s: %w: output: %s", t.name, err, t.program.Output.String())
	}
	took = time.Since(begun)
	after, err := t.program.Usage()
	return after.CPU - before.CPU, took, after.Peak, err
}

// startAgent runs an agent whose configuration comes from the sink.
func startAgent(ctx context.Context, o options, dir string) (*target, error) {
	addr, err := measured.FreeAddr()
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	sink, server, err := startSink(ctx, o, port)
	if err != nil {
		return nil, err
	}
	p, err := measured.Start(o.verbose, []string{"METAFLOW_LOG_LEVEL=warn"}, o.agent,
		"run", "--server", server, "--spool-dir", filepath.Join(dir, "spool"), "--http-listen", o.http)
	if err != nil {
		sink.Stop()
		return nil, err
	}
	t := &target{name: "metaflow-agent", url: "http://" + addr + "/v1/traces", program: p, sink: sink}
	return t, t.await(ctx, addr)
}

func startCollector(ctx context.Context, o options, dir string) (*target, error) {
	addr, err := measured.FreeAddr()
	if err != nil {
		return nil, err
	}
	sink, server, err := startSink(ctx, o, "0")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "collector.yaml")
	yaml := fmt.Sprintf(`
receivers:
  otlp: {protocols: {http: {endpoint: %q}}}
exporters:
  otlp: {endpoint: %q, tls: {insecure: true}, compression: none, sending_queue: {enabled: false}}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines: {traces: {receivers: [otlp], exporters: [otlp]}}
`, addr, server)
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	p, err := measured.Start(o.verbose, nil, o.collector, "--config", file)
	if err != nil {
		sink.Stop()
		return nil, err
	}
	t := &target{name: "collector", url: "http://" + addr + "/v1/traces", program: p, sink: sink}
	return t, t.await(ctx, addr)
}

// await returns when the program listens.
func (t *target) await(ctx context.Context, addr string) error {
	err := t.program.WaitListening(ctx, addr)
	if err != nil {
		t.stop()
	}
	return err
}

func report(o options, all []figures) {
	fmt.Printf("\nrequests of %d spans, %d bytes; OTLP/HTTP in, OTLP/gRPC out, no compression\n\n", o.batch, len(requests(o)[0]))
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = f.name
	}
	measured.Report(os.Stdout, names, all, []measured.Figure[figures]{
		{Name: "CPU us a span, as fast as possible", Format: "%.2f", Of: func(f figures) float64 { return f.full }},
		{Name: fmt.Sprintf("CPU us a span at %d spans/s", o.rate), Format: "%.2f", Of: func(f figures) float64 { return f.paced }},
		{Name: fmt.Sprintf("peak resident MB at %d spans/s", o.rate), Format: "%.1f", Of: func(f figures) float64 { return float64(f.rss) / 1e6 }},
		{Name: "spans/s, as fast as possible", Format: "%.0f", Of: func(f figures) float64 { return f.second }},
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
	"github.com/metaflowys/metaflow-server/deploy/demo/spring-boot/queries"
)

// demo runs the whole demo. Everything that it started is gone when it returns.
func demo(ctx context.Context, o options, out io.Writer, progress func(string, ...any)) (err error) {
	if err := build(ctx, o, progress); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "metaflow-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	asked := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	p, err := startPath(ctx, o, dir, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	p.watch(ctx, cancel)
	seen, err := trade(ctx, o, dir, p, progress)
	if err != nil {
		return explain(ctx, err)
	}
	db := clickHouse{p.at.ClickHouseHTTP}
	acknowledged, err := p.acknowledged(ctx)
	if err != nil {
		return explain(ctx, err)
	}
	if err := awaitStored(ctx, db, acknowledged, o.patience, progress); err != nil {
		return explain(ctx, err)
	}
	if err := answer(ctx, db, out); err != nil {
		return explain(ctx, err)
	}
	if err := check(ctx, o, db, acknowledged, seen, out); err != nil || !o.stay {
		return explain(ctx, err)
	}
	progress("ClickHouse answers at http://%s/ until Ctrl-C", p.at.ClickHouseHTTP)
	<-ctx.Done()
	if asked.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// explain returns the cause of ctx's end in place of the context's error.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// path is the chain that the spans take: an agent, unless the demo runs
// without, and the server.
type path struct {
	at       process.Endpoints
	children []*process.Process // in the order of the data flow
	exporter exporter
	// received and failed are metrics, served at metrics: the spans received
	// from the Java agents, and those of them not acknowledged, which the Java
	// agents sent again.
	received, failed, metrics string
}

// startPath starts server and agent, with their data in dir.
func startPath(ctx context.Context, o options, dir string, progress func(string, ...any)) (_ *path, err error) {
	p := &path{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	progress("starting %s on free ports, data in %s", o.server, dir)
	server, err := process.StartServer(o.server, dir)
	if err != nil {
		return nil, err
	}
	p.children = []*process.Process{server.Process}
	if p.at, err = server.AwaitReady(ctx); err != nil {
		return nil, err
	}
	p.exporter = exporter{"grpc", "http://" + p.at.GRPC}
	p.received, p.failed, p.metrics = "metaflow_gateway_spans_received_total", "metaflow_gateway_spans_failed_total", p.at.HTTP
	if !o.direct {
		err = p.startAgent(ctx, o, dir, progress)
	}
	return p, err
}

// startAgent starts an agent in front of the server and opens its port with
// metaflow-ctl.
func (p *path) startAgent(ctx context.Context, o options, dir string, progress func(string, ...any)) error {
	receiver, err := freeAddress("127.0.0.1")
	if err != nil {
		return err
	}
	if p.metrics, err = freeAddress("127.0.0.1"); err != nil {
		return err
	}
	p.received, p.failed = "metaflow_agent_received_spans_total", "metaflow_agent_failed_spans_total"
	agent, err := process.Start("the agent", nil, o.agent, "run", "--server", p.at.GRPC,
		"--spool-dir", filepath.Join(dir, "spool"), "--http-listen", p.metrics)
	if err != nil {
		return err
	}
	p.children = append([]*process.Process{agent}, p.children...)
	_, port, err := net.SplitHostPort(receiver)
	if err != nil {
		return err
	}
	host, api, err := net.SplitHostPort(p.at.HTTP)
	if err != nil {
		return err
	}
	progress("metaflow-ctl agent-group-config update default: opening the agent's port %s", port)
	cmd := exec.CommandContext(ctx, o.ctl, "agent-group-config", "update", "default", "-f", "-", "--ip", host, "--api-port", api) //nolint:gosec // the user names it
	cmd.Stdin = strings.NewReader("inputs:\n  integration:\n    enabled: true\n    listen_port: " + port + "\n")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("configure the agent: %w: %s", err, text)
	}
	p.exporter = exporter{"http/protobuf", "http://" + receiver}
	return agent.Await(ctx, process.Listening(receiver))
}

// acknowledged returns the number of spans acknowledged to the Java agents.
func (p *path) acknowledged(ctx context.Context) (int, error) {
	text, err := get(ctx, "http://"+p.metrics+"/metrics", "")
	if err != nil {
		return 0, err
	}
	received, err := metric(text, p.received)
	if err != nil {
		return 0, err
	}
	failed, err := metric(text, p.failed)
	return received - failed, err
}

// metric finds a metric without labels in Prometheus text format.
func metric(text, name string) (int, error) {
	for l := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(l, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(n), err
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// watch calls gone if a program ends before ctx does.
func (p *path) watch(ctx context.Context, gone func(error)) {
	(&shop{children: p.children}).watch(ctx, gone)
}

// stop stops agent and server, in the order of the data flow.
func (p *path) stop() error {
	var errs []error
	for _, c := range p.children {
		errs = append(errs, c.Stop())
	}
	return errors.Join(errs...)
}

// trade runs the shop for all visits and stops it, which makes the Java agents
// send every span.
func trade(ctx context.Context, o options, dir string, p *path, progress func(string, ...any)) (seen *report, err error) {
	progress("starting %s and the five services, OpenTelemetry's Java agent in each", database)
	s, err := startShop(o, dir, p.exporter)
	if err != nil {
		return nil, err
	}
	open, closed := context.WithCancelCause(ctx)
	defer closed(nil)
	s.watch(open, closed)
	if err := s.awaitReady(open, progress); err != nil {
		return nil, errors.Join(explain(open, err), s.stop())
	}
	progress("the shop serves at http://%s: %d visits to warm up, then %d", s.addresses[entrance], warmUp, o.visits)
	seen, err = visit(open, "http://"+s.addresses[entrance], o.visits, o.seed)
	err = explain(open, err)
	closed(nil) // from here on the services end on purpose
	progress("%d requests answered; stopping the shop, so that it sends every span", seen.total())
	return seen, errors.Join(err, s.stop())
}

// awaitStored waits until want spans can be queried.
func awaitStored(ctx context.Context, db clickHouse, want int, patience time.Duration, progress func(string, ...any)) error {
	poll := time.NewTicker(250 * time.Millisecond)
	defer poll.Stop()
	stored, changed := -1, time.Now()
	for {
		n, err := db.number(ctx, "SELECT count() FROM metaflow.spans")
		if err == nil && n != stored {
			stored, changed = n, time.Now()
			progress("%d of %d spans stored", n, want)
		}
		if err == nil && n >= want {
			return nil
		}
		if time.Since(changed) >= patience {
			return errors.Join(fmt.Errorf("%d of %d acknowledged spans are stored, and nothing was added for %v", stored, want, patience), err)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// answer prints the demo's answers.
func answer(ctx context.Context, db clickHouse, out io.Writer) error {
	for _, q := range []struct{ title, query string }{
		{"The service graph", queries.Graph},
		{"The slowest request", queries.Waterfall},
		{"The slowest SQL", queries.SlowSQL},
		{"The errors", queries.Errors},
	} {
		table, err := db.table(ctx, q.query)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n== %s\n%s\n%s", q.title, indent(q.query), table)
	}
	return nil
}

func indent(text string) (out string) {
	for l := range strings.Lines(text) {
		out += "   " + l
	}
	return out
}

// check prints whether the stored data is complete, and fails if it is not.
func check(ctx context.Context, o options, db clickHouse, acknowledged int, seen *report, out io.Writer) error {
	fmt.Fprint(out, "\n== Is it complete?\n")
	var errs []error
	hold := func(what string, want int, query string) {
		got, err := db.number(ctx, query)
		mark := "ok"
		if err == nil && got != want {
			mark = fmt.Sprintf("should be %d", want)
			err = fmt.Errorf("%s: %d, should be %d", what, got, want)
		}
		errs = append(errs, err)
		fmt.Fprintf(out, "%-66s %7d  %s\n", what, got, mark)
	}
	hold("spans stored, of those acknowledged", acknowledged, "SELECT count() FROM metaflow.spans")
	hold("distinct spans", acknowledged, "SELECT uniqExact(trace_id, span_id) FROM metaflow.spans")
	if !o.direct {
		hold("spans with the agent's id", acknowledged, "SELECT countIf(agent_id != '') FROM metaflow.spans")
	}
	hold("services with spans", len(services), "SELECT uniqExact(service_name) FROM metaflow.spans")
	for _, status := range slices.Sorted(maps.Keys(seen.statuses)) {
		hold(fmt.Sprintf("requests with response %d", status), seen.statuses[status], fmt.Sprintf(
			"SELECT count() FROM metaflow.spans WHERE service_name = '%s' AND kind = 'server' AND parent_span_id = '' AND response_code = '%d'", entrance, status))
	}
	hold("spans whose parent is missing", 0,
		"SELECT count() FROM metaflow.spans WHERE parent_span_id != '' AND (trace_id, parent_span_id) NOT IN (SELECT trace_id, span_id FROM metaflow.spans)")
	hold("calls between services without a server span", 0,
		"SELECT count() FROM metaflow.spans WHERE kind = 'client' AND protocol = 'http' AND (trace_id, span_id) NOT IN (SELECT trace_id, parent_span_id FROM metaflow.spans WHERE kind = 'server')")
	hold("requests without a call or statement", 0,
		"SELECT count() FROM metaflow.spans WHERE kind = 'server' AND (trace_id, span_id) NOT IN (SELECT trace_id, parent_span_id FROM metaflow.spans)")
	return errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
	"github.com/metaflowys/metaflow-server/deploy/demo/webstore"
	"github.com/metaflowys/metaflow-server/pkg/rpc/callerror"
)

// everySpan is the verdict when nothing is lost or doubled.
const everySpan = "Every span is stored exactly once."

const (
	reportEvery = 2 * time.Second
	// flushTimeout bounds the export of the last spans.
	flushTimeout     = time.Minute
	flushAfterCancel = 3 * time.Second
)

// demo runs the whole demo. Everything that it started is gone when it returns.
func demo(ctx context.Context, o options, out *terminal, progress *progress) (err error) {
	dir, err := os.MkdirTemp("", "metaflow-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	progress.printf("starting %s on free ports, data in %s", o.server, dir)
	server, err := process.StartServer(o.server, dir)
	if err != nil {
		return err
	}
	defer func() {
		progress.printf("stopping the server, removing its data")
		err = errors.Join(err, server.Stop())
	}()

	// From here on the demo ends when its server does.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-server.Done():
			cancel(server.EarlyExit())
		case <-ctx.Done():
		}
	}()
	return explain(ctx, show(ctx, o, server, dir, out, progress))
}

// show sends the spans and prints the answers.
func show(ctx context.Context, o options, server *process.Server, dir string, out *terminal, progress *progress) (err error) {
	at, err := server.AwaitReady(ctx)
	if err != nil {
		return err
	}
	progress.printf("ready: gRPC %s, Kafka %s, ClickHouse %s (native), %s (HTTP)", at.GRPC, at.Kafka, at.ClickHouseNative, at.ClickHouseHTTP)
	progress.printf("look at services and traces while the demo runs: http://%s/ui/", at.QueryHTTP)
	path, err := startPath(ctx, o, at, dir, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, path.stop()) }()
	progress.printf("spans go from %s", path.route)
	report, err := visit(ctx, o, path.entry, progress)
	if err != nil {
		return err
	}
	db, err := openDatabase(at.ClickHouseNative)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	if err := awaitSpans(ctx, db, o.patience, report, progress); err != nil {
		return err
	}
	if err := answer(ctx, db, report, out); err != nil {
		return err
	}
	if err := network(ctx, o, path, db, out, progress); err != nil {
		return err
	}
	out.farewell()
	return nil
}

// visit runs the shop, whose spans go to endpoint. It returns an error unless
// the receiver acknowledged every span.
func visit(ctx context.Context, o options, endpoint string, progress *progress) (report webstore.Report, err error) {
	store, err := webstore.Start(ctx, webstore.Options{Endpoint: endpoint, Seed: o.seed})
	if err != nil {
		return report, err
	}
	progress.printf("the WebStore is open: eleven services and a cache, %d visitors", o.journeys)
	stop := every(reportEvery, func() { progress.printf("%s", summary(store.Report())) })
	err = store.Run(ctx, o.journeys)
	stop()

	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(flushAfterCancel, cancel) })
	defer unhook()
	stop = every(reportEvery, func() { progress.printf("%s", awaited(store.Report(), endpoint)) })
	closeErr := store.Close(closing)
	stop()
	report = store.Report()
	progress.printf("%s", summary(report))
	if err := errors.Join(err, closeErr); err != nil {
		return report, err
	}
	return report, acknowledged(report)
}

func summary(r webstore.Report) string {
	cards := "refused cards"
	if r.Declined == 1 {
		cards = "refused card"
	}
	return fmt.Sprintf("%d journeys, %d orders, %d %s; %s spans recorded, %s acknowledged",
		r.Journeys, r.Orders, r.Declined, cards, thousands(r.Total.Ended), thousands(r.Total.Acknowledged))
}

// awaited says for what the store waits before it closes.
func awaited(r webstore.Report, endpoint string) string {
	text := fmt.Sprintf("waiting for %s to acknowledge %s spans", endpoint, thousands(r.Total.Missing()))
	if r.LastError != nil {
		text += "; the last error: " + callerror.Text(r.LastError)
	}
	return text
}

// acknowledged checks that the receiver accepted all spans.
func acknowledged(r webstore.Report) error {
	if r.Total.Missing() == 0 && r.Total.Rejected == 0 {
		return nil
	}
	err := fmt.Errorf("of %s spans, %s were rejected and %s never acknowledged",
		thousands(r.Total.Ended), thousands(r.Total.Rejected), thousands(r.Total.Missing()))
	if r.LastError != nil {
		err = fmt.Errorf("%w: %w", err, r.LastError)
	}
	return err
}

// awaitSpans waits until all acknowledged spans can be queried.
func awaitSpans(ctx context.Context, db *database, patience time.Duration, report webstore.Report, progress *progress) error {
	want := uint64(report.Total.Acknowledged)
	progress.printf("waiting until ClickHouse returns the spans")
	err := awaitStored(ctx, want, patience,
		func(ctx context.Context) (uint64, error) { n, _, err := db.counts(ctx); return n, err },
		func(stored uint64) { progress.printf("%s of %s spans stored", thousands(stored), thousands(want)) })
	if err != nil {
		return errors.Join(err, missing(ctx, db, report))
	}
	return nil
}

// missing returns an error that lists the services whose counts differ.
func missing(ctx context.Context, db *database, report webstore.Report) error {
	stored, err := db.services(ctx)
	if err != nil {
		return err
	}
	var lines []string
	for name, c := range report.Services {
		if n := stored[name]; n != uint64(c.Acknowledged) {
			lines = append(lines, fmt.Sprintf("%s: %s acknowledged, %s stored", name, thousands(c.Acknowledged), thousands(n)))
		}
	}
	slices.Sort(lines)
	return errors.New(strings.Join(lines, "\n"))
}

// answer prints the demo's answers, and fails if spans are lost or duplicated.
func answer(ctx context.Context, db *database, report webstore.Report, out *terminal) error {
	if err := answerCounts(ctx, db, report, out); err != nil {
		return err
	}
	id, err := db.slowest(ctx)
	if err != nil {
		return err
	}
	trace, err := db.trace(ctx, id)
	if err != nil {
		return err
	}
	out.question("The slowest trace: "+id, slowestQuery, fmt.Sprintf(traceQuery, id))
	out.waterfall(trace)

	edges, err := db.graph(ctx)
	if err != nil {
		return err
	}
	out.question("The service graph", graphQuery)
	out.graph(edges)
	return nil
}

func answerCounts(ctx context.Context, db *database, report webstore.Report, out *terminal) error {
	spans, ids, err := db.counts(ctx)
	if err != nil {
		return err
	}
	out.question("What became of the spans", countsQuery)
	sent, acked := uint64(report.Total.Ended), uint64(report.Total.Acknowledged)
	same := sent == acked && acked == spans && spans == ids
	out.printf("%-12s %10s\n%-12s %10s\n%-12s %10s\n%-12s %10s\n",
		"sent", thousands(sent), "acknowledged", thousands(acked), "stored", thousands(spans), "distinct ids", thousands(ids))
	if !same {
		out.println(out.style(red, "The four numbers should be equal."))
		err := fmt.Errorf("%s spans sent, %s acknowledged, %s stored, %s distinct: spans were lost or duplicated",
			thousands(sent), thousands(acked), thousands(spans), thousands(ids))
		return errors.Join(err, missing(ctx, db, report))
	}
	out.println(out.style(green, everySpan))
	return nil
}

// question prints a headline and the SQL that answers it.
func (t *terminal) question(title string, queries ...string) {
	t.printf("\n%s\n", t.style(bold, "== "+title))
	for _, q := range queries {
		for line := range strings.Lines(q) {
			t.println(t.style(dim, "   "+strings.TrimRight(line, "\n")))
		}
		t.println("")
	}
}

// farewell prints what to try next.
func (t *terminal) farewell() {
	t.printf("\n%s\n%s\n", t.style(bold, "== Try more"), `   make run                                               the same server in the foreground, data kept
   go run ./deploy/demo/runner -endpoint 127.0.0.1:20035  the WebStore again, against that server
   curl http://127.0.0.1:8123/ --data-binary "SELECT name, count() FROM metaflow.spans GROUP BY name"`)
}

// every calls do at intervals until stop is called; stop waits for a call in
// progress.
func every(interval time.Duration, do func()) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				do()
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

package clickhouse

import (
	"context"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// startEngine runs an engine until the test ends. The test may kill it earlier.
func startEngine(t testing.TB, o chengine.Options) *chengine.Engine {
	t.Helper()
	e, err := chengine.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = e.Stop(ctx)
	})
	return e
}

// A writer whose connection died sends the block again until it succeeds. However far
// ClickHouse had come when it was killed, the rows are stored once.
func TestKilledEngineStoresOnce(t *testing.T) {
	cfg := testConfig(t)
	o := chengine.Options{DataDir: t.TempDir(), NativePort: ports.Free(t)}
	cfg.Addresses, cfg.Username = []string{ports.Address(o.NativePort)}, "default"
	e := startEngine(t, o)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	ins := newInserter(t, cfg)
	const rows = 100_000
	block := spanBlock(rows, func(i int) time.Time { return day(1 + i%2) })

	stored := 0
	for round, after := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		token := strconv.Itoa(round)
		pid := e.PID()
		timer := time.AfterFunc(after, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		err := ins.Insert(t.Context(), 0, "spans_local", token, block, rows)
		t.Logf("killed after %s: %v", after, err)
		if err != nil && fault.ClassOf(err) != fault.Retryable {
			t.Errorf("class %s: %v", fault.ClassOf(err), err)
		}
		timer.Stop()
		_ = syscall.Kill(pid, syscall.SIGKILL)
		<-e.Done()
		e = startEngine(t, o)
		if err := ins.Insert(t.Context(), 0, "spans_local", token, block, rows); err != nil {
			t.Fatalf("insert after the restart: %v", err)
		}
		stored += rows
		if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); got != strconv.Itoa(stored) {
			t.Fatalf("killed after %s: %s rows, want %d", after, got, stored)
		}
	}
}

// The worst case: the block is stored, the response is lost, and ClickHouse is killed
// before the retry.
func TestLostAnswerAndKilledEngineStoresOnce(t *testing.T) {
	cfg := testConfig(t)
	o := chengine.Options{DataDir: t.TempDir(), NativePort: ports.Free(t)}
	direct := ports.Address(o.NativePort)
	cfg.Addresses, cfg.Username = []string{direct}, "default"
	e := startEngine(t, o)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	const rows = 20_000
	block := spanBlock(rows, func(i int) time.Time { return day(1 + i%2) })

	muted := cfg
	muted.Addresses = []string{muteAfter(t, direct, 100_000)}
	muted.Compression = compressionNone
	failed := make(chan error, 1)
	go func() { failed <- newInserter(t, muted).Insert(t.Context(), 0, "spans_local", "token", block, rows) }()
	for queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans") != strconv.Itoa(rows) {
		select {
		case <-t.Context().Done():
			t.Fatal("the block was never stored")
		case <-time.After(10 * time.Millisecond): // the server runs on the real clock
		}
	}
	_ = syscall.Kill(e.PID(), syscall.SIGKILL)
	<-e.Done()
	if err := <-failed; err == nil || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("insert without a response: %v", err)
	}
	startEngine(t, o)
	for range 2 {
		if err := newInserter(t, cfg).Insert(t.Context(), 0, "spans_local", "token", block, rows); err != nil {
			t.Fatal(err)
		}
	}
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); got != strconv.Itoa(rows) {
		t.Errorf("%s rows, want %d", got, rows)
	}
}

// Aborting inserts at any moment must not stop the embedded engine, which a connection
// reset would do.
func TestEngineSurvivesCancelledInserts(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = Null")
	const rows = 100_000
	var wg sync.WaitGroup
	for writer := range 3 {
		wg.Go(func() {
			ins := newInserter(t, cfg)
			block := numbers(0, rows)
			for i := range 150 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*(writer+1)*20)*time.Microsecond)
				_ = ins.Insert(ctx, 0, "t", "", block, rows)
				cancel()
				if err := d.Ping(t.Context()); err != nil {
					t.Errorf("after %d cancelled inserts: %v", i+1, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

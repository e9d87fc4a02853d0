package clickhouse

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// heldBack returns the address of a proxy that forwards nothing more to the engine after
// its response to a statement, until open is called.
func heldBack(t *testing.T, answers int64) (addr string, held <-chan struct{}, open func()) {
	t.Helper()
	reached, opened := make(chan struct{}), make(chan struct{})
	var once sync.Once
	addr = proxy{
		server: engine.NativeAddr(),
		toServer: func(p *passed) bool {
			if p.answers.Load() >= answers {
				once.Do(func() { close(reached) })
				<-opened
			}
			return true
		},
		toClient: func(*passed) bool { return true },
	}.start(t)
	var opening sync.Once
	open = func() { opening.Do(func() { close(opened) }) }
	t.Cleanup(open)
	return addr, reached, open
}

// A program that was stopped past its guard's time sends no rows.
func TestRowsAreNotSentAfterTheGuardExpired(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	ins := newInserter(t, cfg)
	until := time.Now().Add(-time.Millisecond)
	guard := Guard{Query: "late", Until: func() time.Time { return until }}
	if err := ins.InsertGuarded(t.Context(), guard, 0, "t", "token", numbers(0, 10), 10); !errors.Is(err, ErrExpired) {
		t.Errorf("error %v", err)
	}
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".t"); got != "0" {
		t.Errorf("%s rows are stored", got)
	}
	until = time.Now().Add(time.Minute)
	if err := ins.InsertGuarded(t.Context(), guard, 0, "t", "token", numbers(0, 10), 10); err != nil {
		t.Error(err)
	}
}

// Settle ends an insert that hangs halfway, and the insert stores nothing afterwards.
func TestSettleEndsInserts(t *testing.T) {
	for name, query := range map[string]string{"own": "topic/1", "of several partitions": QueryOf("topic", 0, 1, 2, 7)} {
		t.Run(name, func(t *testing.T) { settleEndsInserts(t, query) })
	}
}

func settleEndsInserts(t *testing.T, query string) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	slow := cfg
	addr, held, open := heldBack(t, 2) // the login and the columns
	slow.Addresses = []string{addr}
	failed := make(chan error, 1)
	guard := Guard{Query: query, Until: func() time.Time { return time.Now().Add(time.Minute) }}
	go func() {
		failed <- newInserter(t, slow).InsertGuarded(t.Context(), guard, 0, "t", "token", numbers(0, 1000), 1000)
	}()
	<-held
	running := "SELECT count() FROM system.processes WHERE startsWith(query_id, '" + cfg.Database + "/" + query + "#')"
	for tick := time.NewTicker(10 * time.Millisecond); queryText(t, d, running) == "0"; {
		<-tick.C
	}
	ins := newInserter(t, cfg)
	other := cfg
	other.Database = "another_installation"
	if err := newInserter(t, other).Settle(t.Context(), 0, "topic/1"); err != nil {
		t.Fatal(err)
	}
	if err := ins.Settle(t.Context(), 0, "topic/10"); err != nil { // another partition
		t.Fatal(err)
	}
	if got := queryText(t, d, running); got != "1" {
		t.Errorf("%s inserts run", got)
	}
	if err := ins.Settle(t.Context(), 0, "topic/1"); err != nil {
		t.Fatal(err)
	}
	if got := queryText(t, d, running); got != "0" {
		t.Errorf("%s inserts run", got)
	}
	open()
	if err := <-failed; err == nil {
		t.Error("the insert continued")
	}
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".t"); got != "0" {
		t.Errorf("%s rows are stored", got)
	}
}

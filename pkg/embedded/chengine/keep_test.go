package chengine_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine/chtest"
)

// A client that resets its connection aborts the library; whoever else uses the
// engine finds it again where it was, with everything stored.
func TestKeepStartsAgainInTheSamePlace(t *testing.T) {
	o := chengine.Options{DataDir: t.TempDir()}
	e, err := chengine.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- chengine.Keep(ctx, e, o) }()

	conn := chtest.Open(t, e)
	mustExec(t, conn, "CREATE DATABASE kept")
	mustExec(t, conn, "CREATE TABLE kept.n (n UInt64) ENGINE = MergeTree ORDER BY n")
	mustExec(t, conn, "INSERT INTO kept.n SELECT number FROM numbers(10)")
	if err := syscall.Kill(e.PID(), syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	<-e.Done()

	var rows uint64
	deadline := time.Now().Add(20 * time.Second)
	for rows == 0 && time.Now().Before(deadline) {
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM kept.n").Scan(&rows); err != nil {
			<-time.After(20 * time.Millisecond) // the next engine is a process that starts
		}
	}
	if rows != 10 {
		t.Errorf("rows after the engine's death: %d, want 10", rows)
	}
	cancel()
	if err := <-kept; err != nil {
		t.Errorf("Keep after its context ended = %v", err)
	}
	// Nobody holds the directory any more.
	chtest.Start(t, o)
}

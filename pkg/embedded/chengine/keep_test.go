package chengine_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// The library aborts when a client fails to log in. Other clients find the engine again at
// the same address, with all data.
func TestKeepStartsAgainInTheSamePlace(t *testing.T) {
	o := chengine.Options{DataDir: t.TempDir(), NativePort: ports.Free(t), HTTPPort: ports.Free(t)}
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
	deadline := time.Now().Add(wait.Patience)
	for rows == 0 && time.Now().Before(deadline) {
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM kept.n").Scan(&rows); err != nil {
			<-time.After(20 * time.Millisecond) // the next engine is a starting process
		}
	}
	if rows != 10 {
		t.Errorf("rows after the engine's death: %d, want 10", rows)
	}
	cancel()
	if err := <-kept; err != nil {
		t.Errorf("Keep after its context ended = %v", err)
	}
	// The directory is free again.
	chtest.Start(t, o)
}

// An engine that is killed before it responds is started again, and the log has the
// reason.
func TestStartSurvivesKillWhileStarting(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("children are found in /proc")
	}
	var log output.Buffer
	o := chengine.Options{DataDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for { // the engine is the only child of this process with the directory in its command line
			for _, pid := range childrenWith(o.DataDir) {
				if syscall.Kill(pid, syscall.SIGKILL) == nil {
					return
				}
			}
			<-time.After(time.Millisecond)
		}
	}()
	e, err := chengine.StartPersistently(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	<-killed
	if err := e.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if said := log.String(); !strings.Contains(said, "did not start, retrying") || !strings.Contains(said, "signal: killed") {
		t.Errorf("the log says\n%s", said)
	}
}

// childrenWith returns the processes whose command line contains text, except this one.
func childrenWith(text string) []int {
	var pids []int
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		line, readErr := os.ReadFile(name)
		if err == nil && readErr == nil && pid != os.Getpid() && bytes.Contains(line, []byte(text)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

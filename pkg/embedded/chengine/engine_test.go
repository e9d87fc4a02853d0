package chengine_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// parentVariable turns the test binary into a program that starts an engine in the named
// directory, prints its address and waits to be killed.
const parentVariable = "CHENGINE_TEST_PARENT"

// fakeServerVariable turns the test binary into a clickhouse binary.
const fakeServerVariable = "CHENGINE_TEST_SERVER"

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	if dir := os.Getenv(parentVariable); dir != "" {
		runParent(dir)
	}
	if os.Getenv(fakeServerVariable) != "" {
		if err := runFakeServer(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runParent(dir string) {
	e, err := chengine.Start(context.Background(), chengine.Options{DataDir: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(e.PID(), e.NativeAddr())
	<-e.Done()
	os.Exit(1)
}

func mustExec(t *testing.T, conn driver.Conn, sql string) {
	t.Helper()
	if err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t *testing.T, conn driver.Conn, table string) (n uint64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n); err != nil {
		t.Fatalf("count %s: %v", table, err)
	}
	return n
}

func TestDataSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	e := chtest.Start(t, chengine.Options{DataDir: dir})
	conn := chtest.Open(t, e)
	mustExec(t, conn, "CREATE DATABASE kept")
	mustExec(t, conn, "CREATE TABLE kept.n (n UInt64) ENGINE = MergeTree ORDER BY n")
	mustExec(t, conn, "INSERT INTO kept.n SELECT number FROM numbers(1000)")
	chtest.Stop(t, e)

	again := chtest.Start(t, chengine.Options{DataDir: dir})
	if got := count(t, chtest.Open(t, again), "kept.n"); got != 1000 {
		t.Errorf("rows after restart: %d, want 1000", got)
	}
}

// A killed program leaves no engine behind, and its data is usable at once.
func TestKilledParentEndsEngineAndKeepsData(t *testing.T) {
	dir := t.TempDir()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentVariable+"="+dir)
	parent.Stderr = os.Stderr
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Wait() }()
	defer func() { _ = parent.Process.Kill() }()
	var pid int
	var native string
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("read the parent's report: %v", err)
	}
	if _, err := fmt.Sscan(line, &pid, &native); err != nil {
		t.Fatalf("parent said %q: %v", line, err)
	}
	host, port, err := net.SplitHostPort(native)
	if err != nil || host != "127.0.0.1" || port == "0" {
		t.Fatalf("parent's engine listens at %q", native)
	}

	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, pid)

	e := chtest.Start(t, chengine.Options{DataDir: dir})
	mustExec(t, chtest.Open(t, e), "SELECT 1")
}

// waitEnded waits until no process has this id, or only a zombie that its parent has not
// reaped.
func waitEnded(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(wait.Patience)
	for time.Now().Before(deadline) {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
			if _, after, ok := strings.Cut(string(stat), ") "); ok && after[0] == 'Z' {
				return
			}
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("engine %d still runs after its parent was killed", pid)
}

func TestUnexpectedDeathIsReported(t *testing.T) {
	e, err := chengine.Start(t.Context(), chengine.Options{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Err(); err != nil {
		t.Errorf("Err of a living engine = %v", err)
	}
	if err := syscall.Kill(e.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	if err := e.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err after the engine was killed = %v", err)
	}
	if err := e.Stop(t.Context()); err != nil {
		t.Errorf("Stop after death = %v", err)
	}
}

func TestTerminalInterruptDoesNotReachEngine(t *testing.T) {
	e := chtest.Start(t, chengine.Options{})
	group, err := syscall.Getpgid(e.PID())
	if err != nil {
		t.Fatal(err)
	}
	if group == syscall.Getpgrp() {
		t.Error("the engine shares our process group")
	}
}

func TestStopPastDeadlineKills(t *testing.T) {
	e, err := chengine.Start(t.Context(), chengine.Options{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The engine may still end before the expired deadline takes effect.
	if err := e.Stop(ctx); err != nil && !strings.Contains(err.Error(), "killed") {
		t.Errorf("Stop = %v", err)
	}
	select {
	case <-e.Done():
	default:
		t.Error("Stop returned before the engine ended")
	}
}

func TestExtraConfigReachesServer(t *testing.T) {
	e := chtest.Start(t, chengine.Options{ExtraConfig: "<macros><shard>seven</shard></macros>"})
	var got string
	if err := chtest.Open(t, e).QueryRow(t.Context(), "SELECT substitution FROM system.macros WHERE macro = 'shard'").Scan(&got); err != nil {
		t.Fatal(err)
	}
	if got != "seven" {
		t.Errorf("macro shard = %q, want seven", got)
	}
}

func TestStartErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	takenPort := taken.Addr().(*net.TCPAddr).Port
	other := chtest.Start(t, chengine.Options{})
	notALibrary := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(notALibrary, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	usedDir := t.TempDir()
	chtest.Start(t, chengine.Options{DataDir: usedDir})

	tests := map[string]struct {
		o    chengine.Options
		want string
	}{
		"library is absent":                   {chengine.Options{Library: "/absent/libchdb.so"}, "make engine"},
		"library is a directory":              {chengine.Options{Library: t.TempDir()}, "is not a file"},
		"library is something else":           {chengine.Options{Library: notALibrary}, "load engine library"},
		"native port is taken by a stranger":  {chengine.Options{NativePort: takenPort}, "another program uses the port"},
		"http port is taken by an engine":     {chengine.Options{HTTPPort: port(t, other.HTTPAddr())}, "another program uses the port"},
		"both ports are taken by an engine":   {chengine.Options{NativePort: port(t, other.NativeAddr()), HTTPPort: port(t, other.HTTPAddr())}, "another program uses the port"},
		"ports are equal":                     {chengine.Options{NativePort: 7, HTTPPort: 7}, "http port: 7 is the native port"},
		"port is out of range":                {chengine.Options{NativePort: 70000}, "native port: 70000 is not a port"},
		"data directory is used by an engine": {chengine.Options{DataDir: usedDir}, "is used by another engine"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if tc.o.DataDir == "" {
				tc.o.DataDir = t.TempDir()
			}
			tc.o.Logger = slog.New(slog.DiscardHandler)
			e, err := chengine.Start(t.Context(), tc.o)
			if err == nil {
				chtest.Stop(t, e)
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not contain %q", err, tc.want)
			}
		})
	}
}

func port(t *testing.T, addr string) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return a.Port
}

// A query that fails leaves its stack trace in the log file and not on the terminal.
func TestFailedQueriesGoToTheLogFile(t *testing.T) {
	var terminal output.Buffer
	name := filepath.Join(t.TempDir(), "clickhouse.log")
	e := chtest.Start(t, chengine.Options{DataDir: t.TempDir(), LogFile: name, Logger: slog.New(slog.NewTextHandler(&terminal, nil))})
	conn := chtest.Open(t, e)
	if err := conn.Exec(t.Context(), "SELECT no_such_column FROM no_such_table"); err == nil {
		t.Fatal("the query succeeded")
	}
	wait.Until(t, "the log file has the failed query", func() bool {
		text, err := os.ReadFile(name)
		return err == nil && strings.Contains(string(text), "no_such_table")
	})
	if text := terminal.String(); text != "" {
		t.Errorf("the terminal shows\n%s", text)
	}
}

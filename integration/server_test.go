package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/pkg/testkit/programs"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// binaries is the directory into which TestMain builds the programs under test.
var binaries string

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	maybeBeAPod()
	if signal.Ignored(syscall.SIGINT) { // by the shell that runs the tests in its background, and so by all programs
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "metaflow-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binaries = dir
	if err := programs.Build("..", dir, "./cmd/..."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Link(filepath.Join(dir, "metaflow-ctl"), filepath.Join(dir, "metaflow-cli")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// process is a running program.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	output output.Buffer
	done   chan struct{}
}

// start runs metaflow-server with these arguments.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startProgram(t, "metaflow-server", args...)
}

// startProgram runs a program. The test kills it at its end, and shows its
// output if it failed.
func startProgram(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(filepath.Join(binaries, name), args...), done: make(chan struct{})}
	p.cmd.Dir = repository(t)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p.cmd.WaitDelay = 10 * time.Second // for programs that it started and that outlive it
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("output of %s %v:\n%s", name, args, p.output.String())
		}
	})
	return p
}

// repository returns the directory in which the embedded engine's library is
// looked up.
func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// kill ends the process like kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// terminate sends SIGTERM and returns the exit status.
func (p *process) terminate() int {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	return p.end()
}

// interrupt sends SIGINT to the group of the process, as Ctrl-C does, and returns the exit
// status.
func (p *process) interrupt() int {
	p.t.Helper()
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT) // it may have ended
	return p.end()
}

// end waits for the end after a signal.
func (p *process) end() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.t.Errorf("%s did not stop within a minute", p.cmd.Path)
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // a script ends the programs that it started at the second signal
		_ = wait.Poll(10*time.Second, p.done, func() error { return errors.New("it runs") })
		p.kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// eventually waits until check returns nil. It fails the test with check's last
// error if that takes too long or the process ends first.
func (p *process) eventually(within time.Duration, check func() error) {
	p.t.Helper()
	if err := wait.Poll(within, p.done, check); err != nil {
		p.t.Fatal(err)
	}
}

// addresses is the content of --ready-file.
type addresses struct {
	GRPC             string `json:"grpc"`
	OTLPHTTP         string `json:"otlp_http"`
	HTTP             string `json:"http"`
	QueryHTTP        string `json:"query_http"`
	QueryGRPC        string `json:"query_grpc"`
	Kafka            string `json:"kafka"`
	ClickHouseNative string `json:"clickhouse_native"`
	ClickHouseHTTP   string `json:"clickhouse_http"`
}

// standalone is a server with embedded engines.
type standalone struct {
	*process
	at addresses
}

// startStandalone starts a server on free ports and returns when it is ready.
func startStandalone(t *testing.T, dataDir string) *standalone {
	t.Helper()
	return startStandaloneAt(t, dataDir, "127.0.0.1:0")
}

// startStandaloneAt is startStandalone with gRPC on a given address.
func startStandaloneAt(t *testing.T, dataDir, grpc string) *standalone {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready.json")
	s := &standalone{process: start(t, "standalone", "--data-dir", dataDir, "--ready-file", ready,
		"--grpc-listen", grpc, "--otlp-http-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--query-http-listen", "127.0.0.1:0", "--query-grpc-listen", "127.0.0.1:0", "--kafka-listen", "127.0.0.1:0",
		"--clickhouse-native-port", "0", "--clickhouse-http-port", "0")}
	s.eventually(time.Minute, func() error {
		text, err := os.ReadFile(ready)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &s.at)
	})
	return s
}

// open connects to a ClickHouse.
func open(t *testing.T, addr string) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// stored returns the number of rows of metaflow.spans, and of the distinct ids
// among them.
func stored(conn driver.Conn) (rows, ids uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = conn.QueryRow(ctx, "SELECT count(), uniqExact(trace_id, span_id) FROM metaflow.spans").Scan(&rows, &ids)
	return rows, ids, err
}

// exactly returns nil once the given number of spans is stored, each once.
func exactly(conn driver.Conn, want int) func() error {
	return func() error {
		rows, ids, err := stored(conn)
		if err != nil {
			return err
		}
		if rows != uint64(want) || ids != uint64(want) {
			return fmt.Errorf("%d rows with %d distinct ids stored, want %d", rows, ids, want)
		}
		return nil
	}
}

// get returns the status and the body of an HTTP GET.
func get(url string) (int, string, error) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

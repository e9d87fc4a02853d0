package main

import (
	"bytes"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// execute runs the program and returns its exit status and output.
func execute(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = program.Run(t.Context(), newRoot(), args, &out, &err)
	return code, out.String(), err.String()
}

// Every key with its default and meaning, as operators see it.
func TestPrintedDefaultsGolden(t *testing.T) {
	code, got, stderr := execute(t, "config", "print")
	if code != program.ExitOK {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	const file = "testdata/defaults.yaml"
	golden.Check(t, file, got, *update)
	if code, _, stderr := execute(t, "config", "check", "--config", file); code != program.ExitOK {
		t.Errorf("the printed configuration is invalid: exit status %d: %s", code, stderr)
	}
}

// An agent that cannot open its port leaves no state behind.
func TestTakenPortLeavesNoState(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := filepath.Join(t.TempDir(), "spool")
	code, _, stderr := execute(t, "run", "--server", "127.0.0.1:1", "--http-listen", taken.Addr().String(), "--spool-dir", dir)
	if code != program.ExitFailed || !strings.Contains(stderr, "address already in use") {
		t.Errorf("status %d, %s", code, stderr)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the state exists: %v", err)
	}
}

// Every problem is reported at once, each by its key, with the value found.
func TestEveryProblemAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wrong.yaml")
	yaml := `server: {addresses: [nowhere], timeout: -1s}
gruop: x
spool: {dir: ""}
otlp: {bind_address: everywhere, live_timeout: soon}
http: {listen: nowhere}
log: {level: loud}
`
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := execute(t, "config", "check", "--config", file)
	if code != program.ExitUsage {
		t.Errorf("exit status %d, want %d", code, program.ExitUsage)
	}
	for _, word := range []string{
		"server.addresses", "nowhere", "server.timeout", "gruop", "spool.dir", "otlp.bind_address", "everywhere", "otlp.live_timeout", "soon", "http.listen", "log.level", "loud",
	} {
		if !strings.Contains(stderr, word) {
			t.Errorf("output lacks %q:\n%s", word, stderr)
		}
	}
}

// The documented flags.
func TestFlags(t *testing.T) {
	code, out, stderr := execute(t, "config", "print", "--server", "a:1", "--server", "b:2,c:3", "--group", "shops", "--spool-dir", "/x", "--http-listen", "127.0.0.1:0")
	for _, word := range []string{"a:1", "b:2", "c:3", "shops", "/x", "127.0.0.1:0"} {
		if code != program.ExitOK || !strings.Contains(out, word) {
			t.Errorf("status %d, output lacks %q:\n%s%s", code, word, out, stderr)
		}
	}
}

// Flags take durations as the keys of the configuration do.
func TestDurationsInDays(t *testing.T) {
	for _, command := range [][]string{{"check"}, {"parked", "retry"}} {
		if code, _, stderr := execute(t, append(command, "--timeout", "1d", "--help")...); code != program.ExitOK {
			t.Errorf("%s: exit status %d: %s", command, code, stderr)
		}
	}
}

// The server's file is recognized, and that of an agent group.
func TestConfigOfAnotherProgram(t *testing.T) {
	const file = "../metaflow-server/testdata/defaults.yaml"
	group := filepath.Join(t.TempDir(), "group.yaml")
	if err := os.WriteFile(group, agentconfig.Example(), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		file:  "this looks like the configuration of metaflow-server: check it by 'metaflow-server config check " + file + "'",
		group: "this looks like the configuration of an agent group: 'metaflow-ctl agent-group-config update GROUP -f " + group + " --dry-run' checks it",
	} {
		code, _, stderr := execute(t, "config", "check", file)
		if code != program.ExitUsage || !strings.Contains(stderr, want) {
			t.Errorf("exit status %d, want %q in\n%s", code, want, stderr)
		}
	}
}

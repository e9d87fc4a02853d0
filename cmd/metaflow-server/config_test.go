package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite the golden file")

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(m.Run())
}

// execute runs the program and returns its exit status and output.
func execute(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

// Every key with its default and meaning, as operators see it: changing it here changes
// it for them.
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

// All problems are reported at once, each by its key and with the value found.
func TestEveryProblemAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wrong.yaml")
	yaml := `roles: [gateway, riter]
grpc: {listen: nowhere, max_request_bytes: huge}
kafka: {brokers: [], compression: rar, sasl: {password: hunter2}}
clickhouse: {database: "a b", adresses: [x]}
retention: {spans: -1h}
writer: {memory_bytes: 1MiB}
resources: {forget_after: 1s, group: metaflow-writer}
log: {level: loud, format: xml}
`
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := execute(t, "config", "check", "--config", file)
	if code != program.ExitUsage {
		t.Errorf("exit status %d, want %d", code, program.ExitUsage)
	}
	for _, word := range []string{
		"roles[1]", "riter", "grpc.listen", "nowhere", "grpc.max_request_bytes", "huge", "kafka.brokers", "kafka.compression", "rar",
		"clickhouse.database", "adresses", "clickhouse.addresses", "retention.spans", "writer.memory_bytes", "resources.forget_after", "resources.group", "log.level", "loud", "log.format",
	} {
		if !strings.Contains(stderr, word) {
			t.Errorf("the output does not contain %q:\n%s", word, stderr)
		}
	}
	if strings.Contains(stderr, "hunter2") {
		t.Errorf("a password is in what it says:\n%s", stderr)
	}
}

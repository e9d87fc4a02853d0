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

// Two ports with the same number are found before one of them is opened, by both keys.
func TestPortsGivenTwice(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"both ports of ClickHouse": {
			[]string{"standalone", "--data-dir", t.TempDir(), "--clickhouse-native-port", "19000", "--clickhouse-http-port", "19000"},
			"--clickhouse-http-port: 127.0.0.1:19000 is the port of --clickhouse-native-port too; choose another one",
		},
		"Kafka and a default": {
			[]string{"standalone", "--data-dir", t.TempDir(), "--kafka-listen", "0.0.0.0:20035"},
			"--kafka-listen: 0.0.0.0:20035 is the port of grpc.listen too; choose another one",
		},
		"keys": {
			[]string{"serve", "--kafka-brokers", "127.0.0.1:1", "--clickhouse-addresses", "127.0.0.1:1", "--http-listen", "127.0.0.1:20419", "--query-http-listen", "localhost:20419"},
			"query.http_listen: localhost:20419 is the port of http.listen too; choose another one",
		},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := execute(t, tc.args...)
			if code != program.ExitUsage || !strings.Contains(stderr, tc.want) {
				t.Errorf("exit status %d, %q; want %q", code, stderr, tc.want)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "metaflow.yaml")
	for yaml, want := range map[string]int{
		"{http: {listen: '127.0.0.1:7'}, query: {grpc_listen: '127.0.0.1:7'}}":                  program.ExitUsage,
		"{roles: [writer], http: {listen: '127.0.0.1:7'}, query: {grpc_listen: '127.0.0.1:7'}}": program.ExitOK,
		"{http: {listen: '127.0.0.1:7'}, query: {grpc_listen: '127.0.0.2:7'}}":                  program.ExitOK,
		"{http: {listen: '[::1]:7'}, query: {grpc_listen: '0.0.0.0:7', insecure: true}}":        program.ExitOK,
		"{http: {listen: '127.0.0.1:0'}, query: {grpc_listen: '127.0.0.1:0'}, roles: [query]}":  program.ExitOK,
	} {
		if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := execute(t, "config", "check", "--config", file)
		if code != want || want == program.ExitUsage && !strings.Contains(stderr, "query.grpc_listen: 127.0.0.1:7 is the port of http.listen too") {
			t.Errorf("%s: exit status %d, %s", yaml, code, stderr)
		}
	}
}

// The agent's file is recognized.
func TestConfigOfAnotherProgram(t *testing.T) {
	const file = "../metaflow-agent/testdata/defaults.yaml"
	code, _, stderr := execute(t, "config", "check", file)
	want := "this looks like the configuration of metaflow-agent: check it by 'metaflow-agent config check " + file + "'"
	if code != program.ExitUsage || !strings.Contains(stderr, want) {
		t.Errorf("exit status %d, want %q in\n%s", code, want, stderr)
	}
}

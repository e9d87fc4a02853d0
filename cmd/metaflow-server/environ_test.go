package main

import (
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

// Containers of the chart have variables of metaflow-ctl, and pods without
// enableServiceLinks: false have those of every service. Neither prevents a server from
// starting. A misspelled variable does.
func TestVariablesThatNameNoKey(t *testing.T) {
	for name, value := range map[string]string{
		"METAFLOW_CTL_TOKEN": "hunter2", "METAFLOW_CHDB_LIBRARY": "/lib/libchdb.so",
		"METAFLOW_SERVER_SERVICE_HOST": "10.96.0.7", "METAFLOW_SERVER_SERVICE_PORT_HTTP": "20417", "METAFLOW_SERVER_PORT": "tcp://10.96.0.7:20417",
		"METAFLOW_SERVER_PORT_38080_TCP": "tcp://10.96.0.7:38080", "METAFLOW_SERVER_PORT_38080_TCP_ADDR": "10.96.0.7",
		"METAFLOW_CLICKHOUSE_SERVICE_HOST": "10.96.0.8", "METAFLOW_CLICKHOUSE_PORT_9000_TCP": "tcp://10.96.0.8:9000",
	} {
		t.Setenv(name, value)
	}
	if code, _, stderr := execute(t, "config", "check"); code != program.ExitOK {
		t.Errorf("exit status %d: %s", code, stderr)
	}
	t.Setenv("METAFLOW_KAFKA_SASL_PASSWRD", "hunter2")
	code, _, stderr := execute(t, "config", "check")
	if code != program.ExitUsage || !strings.Contains(stderr, "METAFLOW_KAFKA_SASL_PASSWRD: the variable names no key, did you mean METAFLOW_KAFKA_SASL_PASSWORD?") {
		t.Errorf("exit status %d: %s", code, stderr)
	}
	if strings.Contains(stderr, "hunter2") {
		t.Errorf("a password is in what it says:\n%s", stderr)
	}
}

package query

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/collector/pdata/pcommon"
)

func TestDefaultConfigIsValid(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

// Validate reports every problem at once, each by its key with the value found.
func TestValidateNamesKeys(t *testing.T) {
	cfg := DefaultConfig()
	cfg.HTTPListen, cfg.GRPCListen = "nowhere", "1.2.3.4"
	cfg.Tokens = []string{"with space"}
	cfg.MaxExecutionTime, cfg.MaxMemoryBytes, cfg.MaxResultRows, cfg.MaxResultBytes, cfg.MaxQueries = time.Millisecond, 1, 2, 3, 0
	cfg.MaxSpans, cfg.MaxTraces, cfg.MaxRange, cfg.NetworkTimeout, cfg.MaxVerdicts = 3, 0, time.Minute, -time.Second, 0
	cfg.GrafanaURL, cfg.JaegerURL = "grafana:3000", "ftp://jaeger"
	err := cfg.Validate()
	if err == nil {
		t.Fatal("it is valid")
	}
	for _, want := range []string{
		`http_listen: "nowhere"`, `grpc_listen: "1.2.3.4"`, "tokens[0]", "max_execution_time: 1ms", "max_memory_bytes: 1 ", "max_result_rows: 2 ", "max_result_bytes: 3 ", "max_queries: 0 ", "max_spans: 3 ",
		"max_traces: 0 ", "max_range: 1m0s", "network_timeout: -1s", "max_verdicts: 0 ", `grafana_url: "grafana:3000"`, `jaeger_url: "ftp://jaeger"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "with space") {
		t.Error("the error shows a token")
	}
}

// Attributes of the semantic conventions get their types back; nothing else does.
func TestValue(t *testing.T) {
	for _, tc := range []struct {
		key, text string
		want      any
	}{
		{"http.response.status_code", "503", int64(503)},
		{"http.response.status_code", "none", "none"},
		{"app.user.id", "4711", "4711"},
		{"exception.escaped", "true", true},
		{"exception.escaped", "yes", "yes"},
		{"sampler.param", "0.25", 0.25},
		{"process.command_args", `["a","b \"c\""]`, []any{"a", `b "c"`}},
		{"http.request.header.accept", `["text/html"]`, []any{"text/html"}},
		{"http.request.header.accept", "text/html", "text/html"},
		{"host.ip", "[1,2]", "[1,2]"},
	} {
		v := pcommon.NewValueEmpty()
		Value(tc.key, tc.text, v)
		if diff := cmp.Diff(tc.want, v.AsRaw()); diff != "" {
			t.Errorf("%s = %s: -want +got:\n%s", tc.key, tc.text, diff)
		}
	}
}

func TestTraceID(t *testing.T) {
	for text, want := range map[string]string{"ABC": strings.Repeat("0", 29) + "abc", strings.Repeat("f", 32): strings.Repeat("f", 32), "": "", "xyz": "", strings.Repeat("1", 33): ""} {
		if got, err := TraceID(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// Package otelcol runs programs that take a configuration of the OpenTelemetry Collector:
// the collector itself and Jaeger.
package otelcol

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Run runs a program with this configuration until the test ends, and logs its output if
// the test fails.
func Run(t *testing.T, program, config string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config", file) //nolint:gosec // the program that the test is about
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(output.Name())
			t.Logf("output of %s:\n%s", filepath.Base(program), text)
		}
		_ = output.Close()
	})
}

// Jaeger returns the program that `make jaeger` builds in the repository; without it the
// test is skipped.
func Jaeger(t *testing.T, repository string) string {
	t.Helper()
	return built(t, repository, "jaeger")
}

// JaegerCertification returns Jaeger's tests of storages, which `make jaeger` also builds;
// without them the test is skipped.
func JaegerCertification(t *testing.T, repository string) string {
	t.Helper()
	return built(t, repository, "certification")
}

func built(t *testing.T, repository, name string) string {
	t.Helper()
	program := filepath.Join(repository, ".cache", "jaeger", name)
	if _, err := os.Stat(program); err != nil {
		t.Skip("no Jaeger: run `make jaeger`")
	}
	return program
}

// JaegerConfig is a Jaeger that stores and reads by a MetaFlow server: it reads by the role
// query at storage, sends what it receives at otlp to writer, and serves its API at api.
func JaegerConfig(storage, writer, otlp, api, grpc string) string {
	return `
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {receivers: [otlp], exporters: [jaeger_storage_exporter]}
  telemetry: {metrics: {level: none}, logs: {level: warn}}
extensions:
  jaeger_query:
    storage: {traces: metaflow}
    http: {endpoint: "` + api + `"}
    grpc: {endpoint: "` + grpc + `"}
  jaeger_storage:
    backends:
      metaflow:
        grpc:
          endpoint: "` + storage + `"
          tls: {insecure: true}
          timeout: 2m
          writer: {endpoint: "` + writer + `", tls: {insecure: true}}
receivers:
  otlp: {protocols: {grpc: {endpoint: "` + otlp + `"}}}
exporters:
  jaeger_storage_exporter: {trace_storage: metaflow}
`
}

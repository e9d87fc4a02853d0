// Package otelcol runs programs of others: the OpenTelemetry Collector, Jaeger, which takes
// a configuration of the same form, and Prometheus.
package otelcol

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// Run runs a program with this configuration until the test ends, and logs its output if
// the test fails.
func Run(t *testing.T, program, config string) {
	t.Helper()
	run(t, nil, program, "--config", written(t, config))
}

// written returns a file with a configuration.
func written(t *testing.T, config string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// RunJaeger runs the Jaeger that `make jaeger` builds in the repository, until the test ends,
// with the configuration in deploy/jaeger: it reads by the role query at storage, sends what
// it receives at otlp to writer, and serves its API at api. Without the program the test is
// skipped.
func RunJaeger(t *testing.T, repository, storage, writer string) (api, otlp string) {
	t.Helper()
	program := built(t, repository, "jaeger")
	api, otlp = ports.FreeAddress(t), ports.FreeAddress(t)
	environment := []string{"JAEGER_STORAGE=" + storage, "JAEGER_WRITER=" + writer, "JAEGER_HTTP=" + api, "JAEGER_OTLP=" + otlp, "JAEGER_GRPC=" + ports.FreeAddress(t)}
	run(t, environment, program, "--config", filepath.Join(repository, "deploy", "jaeger", "jaeger.yaml"))
	return api, otlp
}

// RunPrometheus runs the Prometheus that `make promtool` puts into the repository, until the
// test ends, and returns the address of its API. It scrapes target each second and
// keeps exemplars. Without the program the test is skipped.
func RunPrometheus(t *testing.T, repository, target string) (api string) {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		program = filepath.Join(repository, ".cache", "promtool", "prometheus")
		if _, err := os.Stat(program); err != nil {
			t.Skip("no Prometheus: run `make promtool`")
		}
	}
	config := "scrape_configs: [{job_name: app, scrape_interval: 1s, scrape_timeout: 1s, static_configs: [{targets: ['" + target + "']}]}]"
	api = ports.FreeAddress(t)
	run(t, nil, program, "--config.file="+written(t, config), "--storage.tsdb.path="+t.TempDir(), "--web.listen-address="+api, "--enable-feature=exemplar-storage")
	return api
}

func run(t *testing.T, environment []string, program string, args ...string) {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...) //nolint:gosec // the program that the test is about
	cmd.Env = append(os.Environ(), environment...)
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

package deploytest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files and the schema's keys")

// repository is the root of the programs' module.
const repository = "../.."

var built struct {
	dir string

	mu       sync.Mutex
	programs map[string]error
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "deploytest")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		built.dir, built.programs = dir, map[string]error{}
		return m.Run()
	}())
}

// program builds a program of the repository once and returns its path.
func program(t *testing.T, name string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	file := filepath.Join(built.dir, name)
	err, done := built.programs[name]
	if !done {
		cmd := exec.Command("go", "build", "-o", file, "./cmd/"+name)
		cmd.Dir = repository
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, failed := cmd.CombinedOutput(); failed != nil {
			err = fmt.Errorf("build %s: %w\n%s", name, failed, out)
		}
		built.programs[name] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// run runs a program of the repository and returns its output and error.
func run(t *testing.T, name string, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(program(t, name), args...)
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	cmd.Env = env
	if cmd.Env == nil {
		cmd.Env = []string{} // not the tests' environment
	}
	if err := cmd.Run(); err != nil {
		return out.String(), errors.Join(err, errors.New(failed.String()))
	}
	return out.String(), nil
}

// checkConfig runs `config check` of a program on a file, with environment
// variables over it.
func checkConfig(t *testing.T, name, text string, env ...string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command := []string{"config", "check", "--config", file}
	if name == "metaflow-verify" {
		name, command = "metaflow-ctl", append([]string{"verify"}, command...)
	}
	_, err := run(t, name, env, command...)
	return err
}

// golden compares got with a file of testdata, which -update rewrites.
func golden(t *testing.T, file, got string) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); run `go test -update`\n%s", file, diff)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

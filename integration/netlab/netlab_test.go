//go:build linux

package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/testkit/programs"
)

// The short form of the lab: a few cases of some seconds each. `make netlab`
// runs all of them.
func TestShortForm(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	o := options{bin: bin, programs: filepath.Join(root, ".cache/netlab")}
	if err := programs.Build(root, bin, "./cmd/...", "./integration/netlab"); err != nil {
		t.Fatal(err)
	}
	if missing := missing(o); len(missing) > 0 {
		t.Skip("cannot run the lab: " + strings.Join(missing, "; "))
	}
	logs := t.TempDir()
	cmd := exec.Command(filepath.Join(bin, "netlab"), "-short", "-bin", bin, "-programs", o.programs, "-keep", logs)
	cmd.Dir = root // where the embedded engine's library is looked up
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("netlab -short: %v", err)
	}
}

// Every case says what it is about, once, and names hosts, services or processes of the lab, or a host
// that its requests ask for.
func TestCases(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cases() {
		known := func(name string) bool {
			return hostNumbers[name] != 0 || slices.Contains(instrumented, name) || processes[name] != nil ||
				slices.ContainsFunc(c.paths, func(path string) bool { return strings.Contains(path, "="+name+":") })
		}
		if seen[c.name] || c.story == "" || len(c.paths) == 0 || c.seconds == 0 {
			t.Errorf("case %q is double or incomplete", c.name)
		}
		seen[c.name] = true
		for _, w := range c.want {
			if !known(w.client) || !known(w.server) || len(w.causes) == 0 {
				t.Errorf("case %q wants an edge from %q to %q because of %q", c.name, w.client, w.server, w.causes)
			}
		}
	}
}

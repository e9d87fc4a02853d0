package main

import (
	"slices"
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/keydoc"
	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

func TestDocumentedKeys(t *testing.T) {
	want := keydoc.Program(config.Keys(configured.New(), program.EnvPrefix))
	if err := keydoc.Check("../../docs/configure.md", "metaflow-agent", want, *update); err != nil {
		t.Error(err)
	}
}

// Other programs know the commands of this one.
func TestCommandsAreKnown(t *testing.T) {
	var names []string
	for _, c := range newRoot().Commands() {
		if c.Name() != "version" {
			names = append(names, c.Name())
		}
	}
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(program.Commands["metaflow-agent"])); !slices.Equal(names, want) {
		t.Errorf("program.Commands has %v, want %v", want, names)
	}
}

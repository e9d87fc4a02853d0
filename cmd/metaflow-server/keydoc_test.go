package main

import (
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/keydoc"
	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

func TestDocumentedKeys(t *testing.T) {
	want := keydoc.Program(config.Keys(configured.New(), program.EnvPrefix))
	if err := keydoc.Check("../../docs/configure.md", "metaflow-server", want, *update); err != nil {
		t.Error(err)
	}
}

// Other programs know the commands of this one.
func TestCommandsAreKnown(t *testing.T) {
	if err := keydoc.CheckCommands(newRoot()); err != nil {
		t.Error(err)
	}
}

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/keydoc"
	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

func TestDocumentedGroupKeys(t *testing.T) {
	want := keydoc.Group(agentconfig.Catalogue())
	if err := keydoc.Check("../../docs/configure.md", "agent group", want, *update); err != nil {
		t.Error(err)
	}
}

func TestDocumentedVerifyKeys(t *testing.T) {
	keys := slices.DeleteFunc(config.Keys(verifyConfigured.New(), program.EnvPrefix), func(k config.Key) bool {
		return !strings.HasPrefix(k.Name, "verify.") // the others are the server's
	})
	want := keydoc.Program(keys)
	if err := keydoc.Check("../../docs/configure.md", "metaflow-ctl verify", want, *update); err != nil {
		t.Error(err)
	}
}

// Other programs know the commands of this one.
func TestCommandsAreKnown(t *testing.T) {
	if err := keydoc.CheckCommands(newRoot("", environment{})); err != nil {
		t.Error(err)
	}
}

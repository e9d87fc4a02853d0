package main

import (
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/keydoc"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

func TestDocumentedGroupKeys(t *testing.T) {
	want := keydoc.Group(agentconfig.Catalogue())
	if err := keydoc.Check("../../docs/configure.md", "agent group", want, *update); err != nil {
		t.Error(err)
	}
}

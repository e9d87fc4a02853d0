package config_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/testkit/fielddoc"
)

// The comment of each field equals its doc tag, so that readers of the code see
// what operators see. -update writes the comments.
func TestFieldCommentsMatchDocTags(t *testing.T) {
	fields := 0
	for _, root := range []string{"../../pkg", "../../cmd/internal/program"} {
		err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
				return err
			}
			source, err := os.ReadFile(name)
			if err == nil && strings.Contains(string(source), "mapstructure:") {
				fields += fielddoc.Check(t, name, func(_, _ string, tag reflect.StructTag) string { return tag.Get("doc") }, *update)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if fields == 0 {
		t.Error("no field of any exported struct has a doc tag")
	}
}

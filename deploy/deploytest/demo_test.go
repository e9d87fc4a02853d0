package deploytest

import (
	"path/filepath"
	"strings"
	"testing"
)

// Manifests of the demos are held to the same: every object is one of its type, and every
// reference leads somewhere.
func TestDemoManifests(t *testing.T) {
	dirs, err := filepath.Glob("../demo/*/manifests")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
			if err != nil || len(files) == 0 {
				t.Fatalf("manifests %v, %v", files, err)
			}
			var all strings.Builder
			for _, f := range files {
				all.WriteString("---\n" + read(t, f))
			}
			for _, problem := range decode(t, all.String(), "demo").audit() {
				t.Error(problem)
			}
		})
	}
}

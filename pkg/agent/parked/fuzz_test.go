package parked_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
)

// Whatever a file of the folder holds, it is listed, and what is read of it is whole.
func FuzzFile(f *testing.F) {
	folder, err := parked.Open(f.TempDir(), 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	if err := folder.Put(parked.Head{Signal: "spans", Cause: "no", Encoding: "zstd"}, []byte("body")); err != nil {
		f.Fatal(err)
	}
	heads, err := folder.List()
	if err != nil {
		f.Fatal(err)
	}
	file := filepath.Join(folder.Dir(), heads[0].Name)
	intact, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(intact)
	f.Add(intact[:len(intact)-1])
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		folder, err := parked.Open(dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, heads[0].Name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		listed, err := folder.List()
		if err != nil || len(listed) != 1 || listed[0].Size != int64(len(content)) {
			t.Fatalf("List = %+v, %v", listed, err)
		}
		if _, body, err := folder.Get(heads[0].Name); err == nil && len(body) > len(content) {
			t.Errorf("%d bytes of a file of %d", len(body), len(content))
		}
	})
}

package parked_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
)

func open(t *testing.T, maxBytes int64) *parked.Folder {
	t.Helper()
	f, err := parked.Open(filepath.Join(t.TempDir(), "parked"), maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A parked request comes back, in another process too, until it is removed.
func TestPutListGetRemove(t *testing.T) {
	f := open(t, 1<<20)
	received := time.Date(2026, 11, 22, 12, 0, 0, 5, time.UTC)
	bodies := [][]byte{[]byte("one\nwith a line\x00"), {}, bytes.Repeat([]byte{7}, 100_000)}
	for i, body := range bodies {
		h := parked.Head{Signal: "spans", Items: i + 1, Refused: 1, Cause: "no \"room\"\n\xff", Waits: i == 1, Received: received, Encoding: "zstd"}
		if err := f.Put(h, body); err != nil {
			t.Fatal(err)
		}
	}
	again, err := parked.Open(f.Dir(), f.MaxBytes())
	if err != nil {
		t.Fatal(err)
	}
	heads, err := again.List()
	if err != nil || len(heads) != len(bodies) {
		t.Fatalf("List = %d heads, %v", len(heads), err)
	}
	if names, err := again.Waiting("spans"); err != nil || len(names) != 1 || names[0] != heads[1].Name {
		t.Errorf("Waiting = %v, %v", names, err)
	}
	if names, err := again.ParkedBefore(heads[2].Parked, "spans"); err != nil || len(names) != 2 || names[1] != heads[1].Name {
		t.Errorf("ParkedBefore = %v, %v", names, err)
	}
	if names, err := again.ParkedBefore(time.Now().Add(time.Hour), "flows"); err != nil || len(names) != 0 {
		t.Errorf("ParkedBefore of flows = %v, %v", names, err)
	}
	total := int64(0)
	for i, h := range heads {
		want := parked.Head{Signal: "spans", Items: i + 1, Refused: 1, Cause: "no \"room\"\n?", Waits: i == 1, Received: received, Encoding: "zstd"}
		if diff := cmp.Diff(want, h, cmpopts.IgnoreFields(parked.Head{}, "Name", "Size", "Parked", "Checksum")); diff != "" {
			t.Errorf("head %d (-want +got):\n%s", i, diff)
		}
		total += h.Size
		got, body, err := again.Get(h.Name)
		if err != nil || !bytes.Equal(body, bodies[i]) || got != h {
			t.Errorf("Get(%s) = %+v, %d bytes, %v", h.Name, got, len(body), err)
		}
	}
	if n, size, err := f.Usage(); n != len(bodies) || size != total || err != nil {
		t.Errorf("Usage = %d, %d, %v; want %d, %d", n, size, err, len(bodies), total)
	}
	for range 2 { // a second Remove is no error
		if err := f.Remove(heads[0].Name); err != nil {
			t.Error(err)
		}
	}
	if n, size, _ := f.Usage(); n != len(bodies)-1 || size != total-heads[0].Size {
		t.Errorf("%d requests left, %d bytes", n, size)
	}
}

// At the bound Put refuses and drops nothing; there is room again after a
// removal.
func TestFull(t *testing.T) {
	f := open(t, 5000)
	var err error
	n := 0
	for ; n < 10; n++ {
		if err = f.Put(parked.Head{Signal: "spans"}, make([]byte, 1000)); err != nil {
			break
		}
	}
	if !errors.Is(err, parked.ErrFull) || n < 3 || n > 4 {
		t.Fatalf("after %d: %v", n, err)
	}
	heads, err := f.List()
	if err != nil || len(heads) != n {
		t.Fatalf("%d requests listed, want %d: %v", len(heads), n, err)
	}
	if err := f.Remove(heads[0].Name); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(parked.Head{Signal: "spans"}, make([]byte, 1000)); err != nil {
		t.Error(err)
	}
}

// A damaged file is listed as damaged, and the others stay readable.
func TestDamage(t *testing.T) {
	f := open(t, 1<<20)
	for range 3 {
		if err := f.Put(parked.Head{Signal: "flows", Cause: "no"}, []byte("body")); err != nil {
			t.Fatal(err)
		}
	}
	heads, _ := f.List()
	for i, text := range []string{"no JSON, and no line", `{"kind":"flows","cause":"no"}` + "\nother body"} {
		if err := os.WriteFile(filepath.Join(f.Dir(), heads[i].Name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{heads[0].Name, heads[1].Name, "../cursor", "missing.parked"} {
		if _, _, err := f.Get(name); err == nil {
			t.Errorf("%d: %s was read", i, name)
		}
	}
	if _, body, err := f.Get(heads[2].Name); err != nil || string(body) != "body" {
		t.Errorf("intact request: %q, %v", body, err)
	}
	if heads, err := f.List(); err != nil || len(heads) != 3 || heads[0].Signal != "" || heads[0].Cause == "" {
		t.Errorf("List = %+v, %v", heads, err)
	}
	if err := f.Remove("../cursor"); err == nil {
		t.Error("a file of another folder was removed")
	}
}

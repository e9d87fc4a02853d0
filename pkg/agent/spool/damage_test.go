package spool_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// filled returns the only segment of a spool with entries of the given sizes,
// closed in order or by a crash, and the offset of each entry.
func filled(t testing.TB, crash bool, sizes ...int) (segment []byte, begins []int) {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir, 64*mib)
	at := 0
	for i, size := range sizes {
		e := entry(i, size)
		add(t, s, e)
		begins = append(begins, at)
		at += 32 + len(e.Body)
	}
	begins = append(begins, at)
	if crash {
		s.Crash()
	} else {
		closeIt(t, s)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	if err != nil || len(files) != 1 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	segment, err = os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return segment, begins
}

// survivors opens a spool with that segment and returns the numbers of the
// entries handed out, all of which must be unchanged.
func survivors(t testing.TB, segment []byte, sizes ...int) []int {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "0000000000000001.spool"), segment, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, 64*mib)
	var got []int
	for _, e := range drain(t, s) {
		n := number(t, e)
		if n >= len(sizes) || !bytes.Equal(e.Body, entry(n, sizes[n]).Body) || !e.Resend {
			t.Fatalf("entry %d changed", n)
		}
		got = append(got, n)
	}
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Fatalf("handed out: %v", got)
	}
	// The spool still works.
	add(t, s, entry(99, 100))
	if e := next(t, s); number(t, e) != 99 || e.Resend {
		t.Fatalf("entry %d handed out next", number(t, e))
	}
	closeIt(t, s)
	return got
}

var damageSizes = []int{20, 3000, 0, 5000, 40, 9000, 20}

func TestTornTailIsCutOff(t *testing.T) {
	segment, begins := filled(t, true, damageSizes...)
	for size := 0; size <= len(segment); size += 1 + size%13 {
		whole := 0 // entries that end before size
		for begins[whole+1] <= size {
			if whole++; whole == len(damageSizes) {
				break
			}
		}
		got := survivors(t, segment[:size], damageSizes...)
		if len(got) != whole {
			t.Fatalf("cut at %d: %v handed out, want %d entries", size, got, whole)
		}
	}
}

// Garbage after the last entry, as left by a file system that had extended the
// file already: zeroes or old contents.
func TestTailOfGarbageIsCutOff(t *testing.T) {
	segment, _ := filled(t, true, damageSizes...)
	for name, tail := range map[string][]byte{
		"zeroes":                   make([]byte, 10_000),
		"noise":                    entry(5, 10_000).Body,
		"half a header":            segment[:20],
		"another segment's header": func() []byte { h := spool.EncodeHeader(2, 0, 7, 5, 0, 0); return h[:] }(),
		"an old header":            func() []byte { h := spool.EncodeHeader(1, 0, 3, 0, 0, 0); return h[:] }(),
		"a huge index":             func() []byte { h := spool.EncodeHeader(1, 0, 1<<31, 0, 0, 0); return h[:] }(),
		"a huge length":            func() []byte { h := spool.EncodeHeader(1, 0, 7, 1<<30, 0, 0); return h[:] }(),
		"a huge footer":            func() []byte { h := spool.EncodeHeader(1, 2, 1<<31, 0, 0, 0); return h[:] }(),
	} {
		if got := survivors(t, append(slices.Clone(segment), tail...), damageSizes...); len(got) != len(damageSizes) {
			t.Errorf("%s: %v handed out", name, got)
		}
	}
}

func TestDamageIsLoggedAndCounted(t *testing.T) {
	segment, begins := filled(t, false, damageSizes...)
	segment[begins[1]+100] ^= 1 // a body
	segment[begins[4]+9] ^= 1   // a header
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "0000000000000001.spool"), segment, 0o600); err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	reg := newRegistry()
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: mib}, spool.Options{Registerer: reg, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Len() != len(damageSizes) {
		t.Errorf("%d entries before the first read", s.Len())
	}
	if got := drain(t, s); len(got) != len(damageSizes)-2 {
		t.Errorf("%d entries handed out", len(got))
	}
	if lost := prom.Value(t, reg, "metaflow_spool_lost_entries_total"); lost != 2 {
		t.Errorf("%v entries counted as lost", lost)
	}
	// Only a call that reads on counts the damage at the end, and on a busy machine a call may
	// end before it reads.
	wait.NoError(t, func() error {
		if _, ok := tryNext(t, s); ok {
			t.Error("one more entry was handed out")
		}
		if n := prom.Value(t, reg, "metaflow_spool_damaged_bytes_total"); int(n) != begins[2]-begins[1]+begins[5]-begins[4] {
			return fmt.Errorf("%v bytes counted as damaged", n)
		}
		return nil
	})
	for _, want := range []string{"lost to damage", "is damaged", "0000000000000001.spool"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, logged.String())
		}
	}
}

// Neither a segment that is not a regular file nor foreign files stop Open.
func TestOtherThingsInTheDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"0000000000000001.spool", "lost+found"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"cursor", "README", "1.spool", "zzzzzzzzzzzzzzzz.spool", "0000000000000002.spool"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("whatever"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		s := open(t, dir, mib)
		if s.Len() != 0 {
			t.Errorf("%d entries", s.Len())
		}
		add(t, s, entry(i, 100))
		if got := drain(t, s); len(got) != 1 || number(t, got[0]) != i {
			t.Errorf("handed out: %v", got)
		}
		closeIt(t, s)
	}
	if _, err := os.Stat(filepath.Join(dir, "0000000000000001.spool")); err != nil {
		t.Error(err)
	}
}

// FuzzDamage changes bytes anywhere in a segment. Open must still work, every
// entry handed out must have been appended, in order, and every untouched entry
// must be handed out.
func FuzzDamage(f *testing.F) {
	closed, begins := filled(f, false, damageSizes...)
	crashed, _ := filled(f, true, damageSizes...)
	f.Add(false, uint16(0), []byte{1})
	f.Add(true, uint16(begins[1]+8), []byte{0xff, 0xff, 0xff})
	f.Add(false, uint16(begins[3]+12), []byte{0x40})
	f.Add(true, uint16(begins[5]-1), bytes.Repeat([]byte{7}, 100))
	f.Add(false, uint16(len(closed)-10), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, crash bool, at uint16, flip []byte) {
		segment := slices.Clone(closed)
		if crash {
			segment = slices.Clone(crashed)
		}
		from := int(at) % len(segment)
		touched := map[int]bool{}
		for i, b := range flip {
			if from+i >= len(segment) || b == 0 {
				continue
			}
			segment[from+i] ^= b
			for e := range damageSizes {
				if from+i >= begins[e] && from+i < begins[e+1] {
					touched[e] = true
				}
			}
		}
		got := survivors(t, segment, damageSizes...)
		for e := range damageSizes {
			if !touched[e] && !slices.Contains(got, e) {
				t.Errorf("untouched entry %d was lost; %v handed out", e, got)
			}
		}
	})
}

// A file of arbitrary bytes must not make Open fail either.
func FuzzGarbage(f *testing.F) {
	segment, _ := filled(f, true, 10, 20, 30)
	f.Add(segment, []byte("MFsc"))
	f.Add([]byte("MFsp"), []byte{})
	f.Fuzz(func(t *testing.T, segment, cursor []byte) {
		dir := t.TempDir()
		for name, data := range map[string][]byte{"0000000000000001.spool": segment, "cursor": cursor} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, dir, mib)
		drain(t, s)
		add(t, s, entry(0, 10))
		closeIt(t, s)
	})
}

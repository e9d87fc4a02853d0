//go:build linux

package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
)

// smallDisk mounts a file system of that size.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("spool-test", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("cannot mount a small file system, which needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// The disk is smaller than the bound, and other files fill it. No acknowledged
// entry is lost, and room comes back without a restart when those files go.
func TestFullDisk(t *testing.T) {
	for name, options := range map[string]string{"of bytes": "size=2m", "of files": "size=64m,nr_inodes=8"} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, options)
			dir := filepath.Join(disk, "spool")
			s := open(t, dir, 16*mib)
			added := 0
			fill := func() {
				for {
					err := s.Append(t.Context(), entry(added, 30_000))
					if errors.Is(err, spool.ErrFull) {
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					added++
				}
			}
			fill()
			first := added
			if first < 20 {
				t.Fatalf("only %d entries fit", first)
			}
			// Small entries may still fit; those that do not leave nothing
			// behind.
			for range 100 {
				if err := s.Append(t.Context(), entry(added, 500)); err == nil {
					added++
				} else if !errors.Is(err, spool.ErrFull) {
					t.Fatal(err)
				}
			}
			// A restart on a full disk works and hands out the entries.
			s.Crash()
			s = open(t, dir, 16*mib)
			if s.Len() != added {
				t.Fatalf("%d entries after a restart, want %d", s.Len(), added)
			}
			for i := range 25 {
				e := next(t, s)
				if number(t, e) != i {
					t.Fatalf("entry %d handed out, want %d", number(t, e), i)
				}
				if err := s.Done(e); err != nil {
					t.Fatal(err)
				}
			}
			before := added
			fill()
			if added == before {
				t.Error("no room after entries were done")
			}
			closeIt(t, s)
			s = open(t, dir, 16*mib)
			for i, e := range drain(t, s) {
				if number(t, e) != 25+i {
					t.Fatalf("entry %d handed out, want %d", number(t, e), 25+i)
				}
			}
			closeIt(t, s)
		})
	}
}

func TestOthersFillTheDisk(t *testing.T) {
	disk := smallDisk(t, "size=2m")
	s := open(t, filepath.Join(disk, "spool"), 16*mib)
	add(t, s, entry(0, 1000))
	other := filepath.Join(disk, "other")
	if err := os.WriteFile(other, make([]byte, 4*mib), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk has more room than it should: %v", err)
	}
	for range 3 {
		if err := s.Append(t.Context(), entry(1, 100_000)); !errors.Is(err, spool.ErrFull) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("Append = %v", err)
		}
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	add(t, s, entry(1, 100_000))
	for i, e := range drain(t, s) {
		if !same(e, entry(i, len(e.Body))) {
			t.Errorf("entry %d handed out as %d", i, number(t, e))
		}
	}
	closeIt(t, s)
}

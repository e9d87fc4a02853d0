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
		t.Skipf("a small file system cannot be mounted, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// The disk is smaller than the bound, and others fill it. Nothing that was
// acknowledged is lost, and there is room again when they leave, without a restart.
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
			// Small ones may still fit, and leave nothing half when they do not.
			for range 100 {
				if err := s.Append(t.Context(), entry(added, 500)); err == nil {
					added++
				} else if !errors.Is(err, spool.ErrFull) {
					t.Fatal(err)
				}
			}
			// Full when it starts: it starts, and gives out what is there.
			s.Crash()
			s = open(t, dir, 16*mib)
			if s.Len() != added {
				t.Fatalf("%d entries after a restart, want %d", s.Len(), added)
			}
			for i := range 25 {
				e := next(t, s)
				if number(t, e) != i {
					t.Fatalf("entry %d came, want %d", number(t, e), i)
				}
				if err := s.Done(e); err != nil {
					t.Fatal(err)
				}
			}
			before := added
			fill()
			if added == before {
				t.Error("no room although entries were done")
			}
			closeIt(t, s)
			s = open(t, dir, 16*mib)
			for i, e := range drain(t, s) {
				if number(t, e) != 25+i {
					t.Fatalf("entry %d came, want %d", number(t, e), 25+i)
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
		t.Fatalf("the disk takes more than it should: %v", err)
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
			t.Errorf("entry %d came as %d", i, number(t, e))
		}
	}
	closeIt(t, s)
}

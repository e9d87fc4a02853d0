package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Sizes of the file systems that may become full: of an agent's spool, and of a broker's logs, which hold
// a whole run.
const (
	spoolBytes  = 64 << 20
	brokerBytes = 1500 << 20
)

// mount gives a directory a file system of its own in memory, where this process may do so.
func (s *site) mount(dir string, bytes int) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if !s.o.mounts {
		return nil
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	s.mounted = append(s.mounted, dir)
	return nil
}

func (s *site) unmount() {
	for _, dir := range s.mounted {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
}

// mayMount reports whether this process may mount a file system.
func mayMount() bool {
	dir, err := os.MkdirTemp("", "metaflow-mount-")
	if err != nil {
		return false
	}
	defer func() { _ = os.Remove(dir) }()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=65536"); err != nil {
		return false
	}
	return syscall.Unmount(dir, syscall.MNT_DETACH) == nil
}

// fill takes all the space that a directory's file system has left, until the function
// that it returns is called.
func fill(dir string) (free func(), err error) {
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	free = func() { _ = os.Remove(path) }
	defer f.Close()
	for _, chunk := range []int{1 << 20, 4 << 10, 1} { // the last bytes, too
		zeros := make([]byte, chunk)
		for {
			if _, err = f.Write(zeros); err != nil {
				break
			}
		}
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, io.ErrShortWrite) {
			free()
			return nil, err
		}
	}
	return free, nil
}

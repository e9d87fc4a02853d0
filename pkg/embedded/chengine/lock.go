package chengine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockPatience is how long Start waits for the engine of a program that was just killed
// to exit, which takes milliseconds.
const lockPatience = 3 * time.Second

// lockDir locks the data directory for one engine. The child inherits the file, so the
// lock lasts as long as the child, even after this process has ended. The server's own
// lock is too late: it takes it only after reading the configuration, which Start would
// have overwritten.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "engine.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	const interval = 10 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			_ = f.Close() // the lock's error says more
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close() // as above
			return nil, fmt.Errorf("data directory %s is used by another engine", dir)
		case <-tick.C:
		}
	}
}

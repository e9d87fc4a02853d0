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

// lockPatience is how long Start waits for the engine of a program that was
// killed a moment ago to be gone too. That takes milliseconds.
const lockPatience = 3 * time.Second

// lockDir takes the data directory for one engine. The child inherits the file,
// so the lock lasts as long as the child, also when this process is gone.
// The server has a lock of its own, but takes it only after it has read the
// configuration that we would have overwritten.
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

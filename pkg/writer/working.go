package writer

import (
	"context"
	"sync"
	"time"
)

// working wakes partitions that wait to try an operation again when the same
// operation succeeds for another. So none waits for the longest backoff once its
// cause has gone. The zero value is ready to use, by many goroutines.
type working struct {
	mu      sync.Mutex
	waiting map[string]chan struct{} // by operation; closed when it succeeds
}

// succeeded wakes those that wait for the operation.
func (w *working) succeeded(operation string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.waiting[operation]; ok {
		close(c)
		delete(w.waiting, operation)
	}
}

// wait returns after d, or as soon as the operation succeeds for another
// partition. Its error is that of ctx.
func (w *working) wait(ctx context.Context, operation string, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.next(operation):
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (w *working) next(operation string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = make(map[string]chan struct{})
	}
	c, ok := w.waiting[operation]
	if !ok {
		c = make(chan struct{})
		w.waiting[operation] = c
	}
	return c
}

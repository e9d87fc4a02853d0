package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	storedPoll = 250 * time.Millisecond
	// defaultPatience is how long the number of stored spans may stay the same
	// before the demo gives up. A batch takes a second or two.
	defaultPatience = 30 * time.Second
)

// awaitStored polls count until it returns at least want. It gives up when the
// number has not changed for patience; until then it retries failed queries. It
// calls seen with each new number.
func awaitStored(ctx context.Context, want uint64, patience time.Duration, count func(context.Context) (uint64, error), seen func(stored uint64)) error {
	poll := time.NewTicker(storedPoll)
	defer poll.Stop()
	var stored uint64
	changed := time.Now()
	for {
		n, err := count(ctx)
		if err == nil && n >= want {
			return nil
		}
		if err == nil && n != stored {
			stored, changed = n, time.Now()
			seen(n)
		}
		if time.Since(changed) >= patience {
			return stalled(stored, want, patience, err)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func stalled(stored, want uint64, patience time.Duration, err error) error {
	text := fmt.Sprintf("%s of %s acknowledged spans are stored, and nothing was added for %v",
		thousands(stored), thousands(want), patience)
	if err != nil {
		return fmt.Errorf("%s; the last query failed: %w", text, err)
	}
	return errors.New(text)
}

// Package wait waits in tests for what happens in other goroutines or other
// programs.
//
// Its limits are for a machine with much other work: a test that passes never
// waits for them.
package wait

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

const (
	// Patience is how long a test waits for what takes no time by itself.
	Patience = 2 * time.Minute
	interval = 5 * time.Millisecond
)

// Until waits until done returns true, and fails the test with what it waited
// for after Patience.
func Until(t testing.TB, what string, done func() bool) {
	t.Helper()
	pending := errors.New(what)
	NoError(t, func() error {
		if done() {
			return nil
		}
		return pending
	})
}

// NoError waits until check returns nil, and fails the test after Patience with
// the last error.
func NoError(t testing.TB, check func() error) {
	t.Helper()
	if err := Poll(Patience, nil, check); err != nil {
		t.Fatal(err)
	}
}

// Poll calls check until it returns nil. It gives up, with the last error, after
// the time given or when ended is closed; ended may be nil.
func Poll(within time.Duration, ended <-chan struct{}, check func() error) error {
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ended:
			return fmt.Errorf("the program ended: %w", err)
		case <-timeout.C:
			return fmt.Errorf("not within %s: %w", within, err)
		}
	}
}

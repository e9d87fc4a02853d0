// Package retry repeats what may succeed later, with growing pauses, and what has
// to be done at every interval.
//
// The caller decides which errors are worth another attempt, and says what to
// log. The package starts no goroutine and writes no log.
package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Policy is how long the pauses between attempts are.
type Policy struct {
	// First is the longest pause after the first failure. Each failure in a row
	// doubles it, up to Max.
	First, Max time.Duration
	// Lasting is for attempts that work for a while before they fail, such as a
	// stream: after one that lasted longer the pauses start anew. 0 is never.
	Lasting time.Duration
}

// Pause is how long to wait after so many failures in a row, from 1. It is
// random between half of the longest pause and all of it: those whose attempts
// failed together must not come back together.
func (p Policy) Pause(failures int) time.Duration {
	longest := p.First
	for i := 1; i < failures && longest < p.Max; i++ {
		longest *= 2
	}
	longest = min(longest, p.Max)
	return longest - rand.N(longest/2+1) //nolint:gosec // spreads load, guards nothing
}

// Failure is what Do reports before it waits.
type Failure struct {
	Err   error
	Count int           // failures in a row, this one included
	Pause time.Duration // before the next attempt
}

// Do calls attempt until it succeeds. It gives up when attempt returns an error
// that Stop made, and then returns the error in it; or when ctx ends, and then
// returns the error of ctx with that of the last attempt. Before each pause it
// calls failed, unless that is nil.
func Do(ctx context.Context, p Policy, attempt func(context.Context) error, failed func(Failure)) error {
	for count := 1; ; count++ {
		begun := time.Now()
		err := attempt(ctx)
		var final *stopError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &final):
			return final.error
		case ctx.Err() != nil:
			return ended(ctx, err)
		case p.Lasting > 0 && time.Since(begun) > p.Lasting:
			count = 1
		}
		pause := p.Pause(count)
		if failed != nil {
			failed(Failure{Err: err, Count: count, Pause: pause})
		}
		if Sleep(ctx, pause) != nil {
			return ended(ctx, err)
		}
	}
}

func ended(ctx context.Context, last error) error {
	if errors.Is(last, ctx.Err()) {
		return last
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), last)
}

// Stop makes Do return err, which no other attempt can mend.
func Stop(err error) error { return &stopError{err} }

type stopError struct{ error }

func (e *stopError) Unwrap() error { return e.error }

// Every calls f at each interval, from the first one on, until ctx ends.
func Every(ctx context.Context, interval time.Duration, f func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// Sleep waits for d and returns nil, or returns the error of ctx as soon as it
// ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

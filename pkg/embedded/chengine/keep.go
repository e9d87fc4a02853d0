package chengine

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// restarts paces the starts of a child that ends. The first is at once; after
// a child that lived for settledAfter, so is the next.
var restarts = retry.Policy{First: 500 * time.Millisecond, Max: 30 * time.Second}

const (
	settledAfter = time.Minute
	// stopGrace is how long Keep lets queries end when it stops. Killing the
	// child after that costs no stored data.
	stopGrace = 10 * time.Second
)

// StartPersistently is Start, but tries again for ever, with pauses, when the child ends before
// it answers or does not answer in time. What another try cannot mend is returned:
// wrong options, a port or a directory that another program uses, no engine to start.
func StartPersistently(ctx context.Context, o Options) (*Engine, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return startUntil(ctx, o, func(err error) bool {
		passing := errors.Is(err, errEnded) || errors.Is(err, context.DeadlineExceeded)
		return passing && !strings.Contains(err.Error(), "Address already in use")
	})
}

// startUntil tries to start an engine until it succeeds, ctx ends, or an error is not worth another try.
func startUntil(ctx context.Context, o Options, worth func(error) bool) (e *Engine, err error) {
	err = retry.Do(ctx, restarts, func(ctx context.Context) error {
		var err error
		if e, err = Start(ctx, o); err != nil && !worth(err) {
			return retry.Stop(err)
		}
		return err
	}, func(f retry.Failure) {
		o.Logger.Error("clickhouse engine did not start, trying again", "error", f.Err, "after", f.Pause)
	})
	return e, err
}

// Keep watches e, which Start made from o, and starts the engine again on the
// same ports whenever it ends unasked, for ever, until ctx ends; then it stops the engine
// and returns nil. It logs why the engine ended. It blocks, and leaves no process behind. e's own methods tell
// nothing about later engines.
//
// The embedded library needs this: it is clickhouse-local, which aborts when a
// client resets its connection in the middle of an INSERT. Clients see a broken
// connection for half a second, as with any server that restarts.
func Keep(ctx context.Context, e *Engine, o Options) error {
	o.NativePort, o.HTTPPort = e.at.native, e.at.http
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for failures := 0; ; failures++ {
		begun := time.Now()
		select {
		case <-ctx.Done():
			stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
			defer cancel()
			return e.Stop(stopCtx)
		case <-e.Done():
		}
		if time.Since(begun) > settledAfter {
			failures = 0
		}
		pause := time.Duration(0)
		if failures > 0 {
			pause = restarts.Pause(failures)
		}
		o.Logger.Error("clickhouse engine ended, starting it again", "error", e.Err(), "after", pause)
		if retry.Sleep(ctx, pause) != nil {
			return nil // asked to stop while nothing ran
		}
		next, err := startUntil(ctx, o, func(error) bool { return true })
		if err != nil {
			return nil // asked to stop while nothing ran
		}
		e = next
	}
}

package chengine

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"
)

const (
	// A child that ends is started again at once, and then after pauses that double up to
	// longestPause, until one has lived for settledAfter.
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
	settledAfter = time.Minute
	// stopGrace is for queries to end when Keep is asked to stop. Killing after
	// it costs no stored data.
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

// startUntil starts an engine until it succeeds, ctx ends, or worth says that it is not worth another try.
func startUntil(ctx context.Context, o Options, worth func(error) bool) (*Engine, error) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		e, err := Start(ctx, o)
		if err == nil || ctx.Err() != nil || !worth(err) {
			return e, err
		}
		o.Logger.Error("clickhouse engine did not start, trying again", "error", err, "after", pause)
		if wait(ctx, pause) != nil {
			return nil, err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
	pause := time.Duration(0)
	for {
		begun := time.Now()
		select {
		case <-ctx.Done():
			stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
			defer cancel()
			return e.Stop(stopCtx)
		case <-e.Done():
		}
		if time.Since(begun) > settledAfter {
			pause = 0
		}
		o.Logger.Error("clickhouse engine ended, starting it again", "error", e.Err(), "after", pause)
		if wait(ctx, pause) != nil {
			return nil // asked to stop while nothing ran
		}
		pause = min(max(2*pause, firstPause), longestPause)
		next, err := startUntil(ctx, o, func(error) bool { return true })
		if err != nil {
			return nil // asked to stop while nothing ran
		}
		e = next
	}
}

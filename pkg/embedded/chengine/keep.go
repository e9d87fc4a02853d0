package chengine

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// restarts paces the restarts of a child that ended. The first restart is at once, and
// again after a child that lived for settledAfter.
var restarts = retry.Policy{First: 500 * time.Millisecond, Max: 30 * time.Second}

const (
	settledAfter = time.Minute
	// stopGrace is how long Keep lets queries finish when it stops. Killing the child
	// after that loses no stored data.
	stopGrace = 10 * time.Second
)

// StartPersistently is Start with endless retries while the child ends before it responds
// or does not respond in time. It returns errors that a retry cannot fix: invalid
// options, a port or directory in use by another program, no engine.
func StartPersistently(ctx context.Context, o Options) (*Engine, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return startUntil(ctx, o, func(err error) bool {
		passing := errors.Is(err, errEnded) || errors.Is(err, context.DeadlineExceeded)
		return passing && !strings.Contains(err.Error(), "Address already in use")
	})
}

// startUntil retries Start until it succeeds, ctx ends, or worth returns false for an
// error.
func startUntil(ctx context.Context, o Options, worth func(error) bool) (e *Engine, err error) {
	err = retry.Do(ctx, restarts, func(ctx context.Context) error {
		var err error
		if e, err = Start(ctx, o); err != nil && !worth(err) {
			return retry.Stop(err)
		}
		return err
	}, func(f retry.Failure) {
		o.Logger.Error("clickhouse engine did not start, retrying", slog.Any("error", f.Err), slog.Duration("after", f.Pause))
	})
	return e, err
}

// Keep watches e, which Start created from o, and restarts the engine on the same ports
// whenever it ends unexpectedly. When ctx ends, it stops the engine and returns nil. It
// logs why an engine ended. It leaves no process behind. The methods of e do not cover
// later engines.
//
// The embedded library requires this: it is clickhouse-local, which aborts when a client of
// the native port fails to log in or resets an idle connection. Clients see a broken
// connection for half a second, as with any restarting server.
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
		o.Logger.Error("clickhouse engine ended, restarting it", slog.Any("error", e.Err()), slog.Duration("after", pause))
		if retry.Sleep(ctx, pause) != nil {
			return nil // stopped while no engine ran
		}
		next, err := startUntil(ctx, o, func(error) bool { return true })
		if err != nil {
			return nil // stopped while no engine ran
		}
		e = next
	}
}

package chengine

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

const (
	// restartLimit deaths within restartWindow are not bad luck: Keep gives up.
	restartLimit  = 10
	restartWindow = time.Minute
	// stopGrace is for queries to end when Keep is asked to stop. Killing after
	// it costs no stored data.
	stopGrace = 10 * time.Second
)

// Keep watches e, which Start made from o, and starts the engine again on the
// same ports whenever it ends unasked, until ctx ends; then it stops the engine
// and returns nil. It blocks, and leaves no process behind. e's own methods tell
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
	var deaths []time.Time
	for {
		select {
		case <-ctx.Done():
			stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
			defer cancel()
			return e.Stop(stopCtx)
		case <-e.Done():
		}
		deaths = append(deaths, time.Now())
		if n := len(deaths); n >= restartLimit && deaths[n-1].Sub(deaths[n-restartLimit]) < restartWindow {
			return fmt.Errorf("keep clickhouse engine: ended %d times within %v: %w", restartLimit, restartWindow, e.Err())
		}
		o.Logger.Error("clickhouse engine ended, starting it again", "err", e.Err())
		next, err := Start(ctx, o)
		if err != nil {
			if ctx.Err() != nil {
				return nil // asked to stop while nothing ran
			}
			return fmt.Errorf("keep clickhouse engine: %w", err)
		}
		e = next
	}
}

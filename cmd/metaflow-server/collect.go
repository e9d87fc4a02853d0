package main

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

const (
	// manyInFlight is far more than is in flight while Kafka keeps up.
	manyInFlight = 32 << 20
	// soonerPercent lets memory grow by a quarter before it is collected, instead of to twice its size.
	soonerPercent = 25
	usualPercent  = 100
	lookEvery     = 100 * time.Millisecond
)

// collectSooner makes the garbage collector run more often while many bytes are in flight, until ctx
// ends. Those are large buffers without pointers, which cost nothing to mark. At the usual pace there
// would be as much garbage beside them. An operator's GOGC is left alone.
func collectSooner(ctx context.Context, budget *inflight.Budget) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer debug.SetGCPercent(usualPercent)
	sooner := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch bytes, _ := budget.InFlight(); {
		case !sooner && bytes > manyInFlight:
			sooner = true
			debug.SetGCPercent(soonerPercent)
		case sooner && bytes < manyInFlight/2:
			sooner = false
			debug.SetGCPercent(usualPercent)
		}
	}
}

package webstore

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// spread is the sigma of the log-normal distribution of a handler's own
	// time: most are near the median, one in a hundred takes three times as
	// long.
	spread = 0.5
	// One handler in stallEvery stalls and takes stallFactor times as long.
	stallEvery  = 150
	stallFactor = 15
)

// latency draws the handlers' own time from a seeded distribution.
type latency struct {
	median time.Duration
	dice   *dice
}

func (l latency) draw() time.Duration {
	d := float64(l.median) * math.Exp(spread*l.dice.norm())
	if l.dice.intn(stallEvery) == 0 {
		d *= stallFactor
	}
	return time.Duration(d)
}

// wait blocks for a drawn time, or returns the error of ctx if it ends first.
func (l latency) wait(ctx context.Context) error { return pause(ctx, l.draw()) }

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dice holds a service's random numbers, shared by all its handlers.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
}

func (d *dice) intn(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

func (d *dice) norm() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.NormFloat64()
}

// id returns a random name for a new object.
func (d *dice) id(prefix string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf("%s-%016x", prefix, d.rng.Uint64())
}

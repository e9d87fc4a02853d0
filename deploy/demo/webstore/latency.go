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
	// spread is the sigma of the log-normal distribution of a handler's own time:
	// most are near the median, one in a hundred takes three times as long.
	spread = 0.5
	// One handler in stallEvery waits for something and takes stallFactor times as long.
	stallEvery  = 150
	stallFactor = 15
)

// latency is the time that a service's handlers take for themselves, drawn from a
// seeded distribution.
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

// wait returns the error of ctx when it ends first.
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

// dice are a service's random numbers, for all its handlers.
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

// id makes up a name for something new.
func (d *dice) id(prefix string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf("%s-%016x", prefix, d.rng.Uint64())
}

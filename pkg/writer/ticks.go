package writer

import (
	"context"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// ticks are the moments at which the partitions of a writer store their rows. They do so
// together, so that their rows go out in one INSERT.
//
// A record that comes right after a tick waits for the next one, and then until its rows are
// stored. Both together take wait at most while the writer keeps up: the ticks are as much closer
// to each other as storing has taken lately, down to half of wait.
type ticks struct {
	wait time.Duration

	mu   sync.Mutex
	last time.Time
	took time.Duration
}

// next returns the first tick after now.
func (t *ticks) next(now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !now.Before(t.last) {
		every := t.wait - min(t.took, t.wait/2)
		if t.last = t.last.Add(every); !now.Before(t.last) { // the first call, or the first for a long time
			t.last = now.Add(every)
		}
	}
	return t.last
}

// stored notes how long after a tick rows could be queried. One slow block counts less with every
// block after it.
func (t *ticks) stored(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.took = max(took, t.took-t.took/16)
}

// due reports whether the batch is to be stored: its tick has come.
func (p *partition) due() bool { return !time.Now().Before(p.tick) }

// collect fetches what the log has next. Outside a slot the broker keeps it back until the tick,
// or until there is as much as is asked for: one fetch for each tick, however often producers send.
func (p *partition) collect(ctx context.Context, offset int64, maxBytes int) (kafka.Batch, error) {
	now := time.Now()
	if p.batch == nil {
		p.tick = p.ticks.next(now)
	}
	wait := max(p.tick.Sub(now), time.Millisecond)
	wait = (wait + time.Millisecond - 1).Truncate(time.Millisecond) // what Kafka counts in
	if p.bulk {
		return p.claim.Fetch(ctx, offset, p.share.fetchBytes, wait)
	}
	p.share.gatherer.expect(p, p.tick)
	return p.claim.Collect(ctx, offset, maxBytes, maxBytes, wait)
}

// fetchMemory is what the next fetch outside a slot may take: twice what fetches took lately, so
// that partitions which wait for little do not hold the memory of others.
func (p *partition) fetchMemory() int64 {
	most := p.share.fetchMemory()
	return min(max(2*p.grown, most/16, fetchFactor), most)
}

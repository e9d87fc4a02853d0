package writer

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// partition follows one partition. It belongs to the goroutine of Handle.
type partition struct {
	*Writer
	claim  Claim
	log    *slog.Logger
	window *delivery.Window
	shard  int    // where the rows go; tokens are known only there
	share  *share // of the memory, for that shard
	next   int64  // offset to fetch next
	epoch  int32  // leader epoch of the last record before next; -1 when unknown
	logEnd int64  // as far as the last fetch knew
	unsure int64  // records before this offset may be stored already, see locate
	batch  *batch
	held   int64 // of share.memory, for batch
	bulk   bool  // has one of share.slots instead
	behind bool  // the log has more than was fetched

	// refusedAt is share.accepted when rows were refused and nothing else was taken; what has
	// been taken since tells that these rows are at fault. Negative while there are none.
	refusedAt int64

	committed atomic.Int64 // offset; for watchLag
}

func newPartition(w *Writer, claim Claim) *partition {
	p := &partition{
		Writer: w, claim: claim, epoch: -1, refusedAt: -1,
		log: w.log.With("topic", claim.Topic(), "partition", claim.Partition()),
	}
	p.setShard(p.ownShard())
	return p
}

// close gives back what the partition holds. A batch that was not planned is
// simply forgotten: its records are read again by the next owner.
func (p *partition) close() {
	p.dropBatch()
	p.metrics.forget(p.claim.Partition())
}

// run returns when ctx ends or the partition must be given up.
func (p *partition) run(ctx context.Context) {
	for attempt := 0; ; attempt++ {
		begun := time.Now()
		err := p.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, kafka.ErrTopicChanged):
			p.log.Warn("giving up the partition: its topic is not the same any more", "error", err)
			return
		case fault.ClassOf(err) == fault.Fenced:
			p.log.Warn("giving up the partition", "error", err)
			return
		case time.Since(begun) > maxBackoff: // it went well for a while
			attempt = 0
		}
		if p.pause(ctx, "follow", err, attempt) != nil {
			return
		}
	}
}

// follow takes the partition over and works on it until something is wrong
// that only taking it over again can mend.
func (p *partition) follow(ctx context.Context) error {
	err := p.resume(ctx)
	for err == nil {
		err = p.step(ctx)
	}
	return err
}

// errStartOver says that the batch cannot be stored as it was read. What is
// still in the log is read again from the committed offset.
var errStartOver = errors.New("the log is not as it was when the batch was read")

// persist calls f until it succeeds. It gives up, with an error, when ctx
// ends, the partition is somebody else's or has to be taken over again.
func (p *partition) persist(ctx context.Context, what string, f func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		err := f(ctx)
		if err == nil {
			p.working.succeeded(what)
			return nil
		}
		if ctx.Err() != nil || fault.ClassOf(err) == fault.Fenced || startOver(err) {
			return err
		}
		if err := p.pause(ctx, what, err, attempt); err != nil {
			return err
		}
	}
}

// startOver reports whether only taking the partition over again can help.
func startOver(err error) bool {
	return errors.Is(err, errStartOver) || errors.Is(err, kafka.ErrTruncated) || errors.Is(err, kafka.ErrTopicChanged)
}

// pause says that what failed is tried again, and waits before that: for the backoff, or
// less when the same succeeds for another partition.
func (p *partition) pause(ctx context.Context, what string, err error, attempt int) error {
	p.metrics.retries.WithLabelValues(what).Inc()
	delay := backoff(attempt)
	p.log.Warn("retrying after a failure", "operation", what, "error", err, "attempt", attempt+1, "delay", delay)
	least := min(delay, leastPause)
	if err := sleep(ctx, least); err != nil {
		return err
	}
	return p.working.wait(ctx, what, delay-least)
}

const (
	// maxBackoff is the longest pause between two attempts, and so the longest that a partition
	// needs to notice that what was away is back.
	maxBackoff = 5 * time.Second
	// leastPause is how long a partition waits at least once its backoff has grown, however
	// well others do: what fails for it alone must not be tried at their rate.
	leastPause = time.Second
)

// backoff doubles from 100 ms to maxBackoff: short enough to notice a restarted
// server at once, long enough not to be what keeps it from starting.
func backoff(attempt int) time.Duration {
	return min(100*time.Millisecond<<min(attempt, 10), maxBackoff)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setShard makes the rows go to a shard. There must be no batch.
func (p *partition) setShard(shard int) { p.shard, p.share = shard, p.shareOf(shard) }

// ownShard is where this partition's rows go while the number of shards stays.
func (p *partition) ownShard() int { return p.claim.Partition() % p.store.Shards() }

// step fetches once, and inserts when the batch is due.
func (p *partition) step(ctx context.Context) error {
	if p.behind && p.batch == nil {
		if err := p.share.slots.Acquire(ctx, 1); err != nil {
			return err
		}
		p.bulk = true
	}
	var need int64
	if !p.bulk { // what a slot holds is accounted for
		need = p.share.fetchMemory()
		if !p.share.memory.TryAcquire(need) {
			if p.batch != nil {
				return p.flush(ctx) // gives back what it holds
			}
			if err := p.share.memory.Acquire(ctx, need); err != nil {
				return err
			}
		}
	}
	before := p.next
	err := p.fetch(ctx)
	if need > 0 {
		// What the batch has grown by stays held, the rest goes back.
		grown := min(max(p.batch.memory()-p.held, 0), need)
		p.held += grown
		p.share.memory.Release(need - grown)
	}
	switch {
	case err != nil:
		return err
	case p.batch == nil:
		p.leaveBulk()
		return nil
	// In a slot the batch grows until it is full or the log has no more. A
	// partition that has just fallen behind gives way to those in the slots.
	case p.bulk != p.behind, !p.bulk && (p.full() || p.batch.old(&p.cfg)), p.next == before && p.batch.old(&p.cfg):
		return p.flush(ctx)
	default:
		return nil
	}
}

func (p *partition) full() bool { return p.batch.full(&p.cfg, p.share.maxBatch) }

// leaveBulk gives up the slot, if there is one. A partition that is behind may
// fill a whole batch only in one of a few slots: otherwise all that are
// behind would share the memory, and insert many small batches.
func (p *partition) leaveBulk() {
	if p.bulk {
		p.share.slots.Release(1)
		p.bulk = false
	}
}

// fetch takes what the log has next, or waits for it as long as the batch may
// wait, and notes whether the log has more.
func (p *partition) fetch(ctx context.Context) error {
	wait := p.cfg.MaxWait
	if p.batch != nil {
		wait = max(time.Until(p.batch.begun.Add(p.cfg.MaxWait)), time.Millisecond)
	}
	var fetched kafka.Batch
	err := p.persist(ctx, "fetch", func(ctx context.Context) error {
		var err error
		fetched, err = p.claim.Fetch(ctx, p.next, p.share.fetchBytes, wait)
		if errors.Is(err, kafka.ErrOffsetOutOfRange) {
			var next int64
			next, err = p.skipLost(ctx, p.next)
			fetched = kafka.Batch{Next: next, HighWatermark: next}
		}
		if bad, ok := asCorrupt(err); ok {
			p.openBatch(bad.Offset)
			p.divertCorrupt(bad)
			fetched, err = kafka.Batch{Next: bad.Next, HighWatermark: bad.Next}, nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := range fetched.Records {
		r := &fetched.Records[i]
		if p.batch == nil {
			p.openBatch(r.Offset)
			p.batch.first = r.Time.UnixMilli()
		}
		p.take(r)
		p.batch.unknown = p.batch.unknown || r.Offset < p.unsure
		if p.full() {
			// The rest is fetched again: a flush may have to fetch, and the
			// rest is better kept for the next whole batch than inserted alone.
			p.epoch = fetched.LeaderEpoch
			p.next, p.behind = r.Offset+1, fetched.HighWatermark > r.Offset+1
			if p.refusedAt >= 0 {
				return p.shrink(ctx)
			}
			return p.flush(ctx)
		}
	}
	p.next = fetched.Next
	if len(fetched.Records) > 0 {
		p.epoch = fetched.LeaderEpoch
	}
	if p.batch != nil {
		p.batch.to = p.next
	}
	p.logEnd = max(fetched.LogEnd, fetched.HighWatermark)
	p.metrics.lag(p.claim.Partition(), max(fetched.LogEnd, fetched.HighWatermark)-p.committed.Load())
	p.behind = fetched.HighWatermark > p.next
	return nil
}

// shrink makes room in a batch that is full of rows which are stored, beside some that were
// refused when they were alone: these wait for others, which must have a place.
func (p *partition) shrink(ctx context.Context) error {
	b := p.batch
	if err := p.appendResent(ctx); err != nil {
		return err
	}
	if err := p.keepMissing(ctx, ctx, p.rangeOf(b)); err != nil {
		return err
	}
	if p.full() {
		return p.flush(ctx)
	}
	return nil
}

// openBatch makes sure that there is a batch. A new one begins at offset from.
func (p *partition) openBatch(from int64) {
	if p.batch != nil {
		return
	}
	var block columns.Block
	if p.bulk {
		select {
		case block = <-p.share.large:
		default:
		}
	}
	if block == nil {
		block = p.blocks.Get().(columns.Block)
	}
	p.batch = newBatch(block, from, p.epoch)
	p.batch.unknown = from < p.unsure
}

// dropBatch forgets the batch and gives back its memory, or its slot.
func (p *partition) dropBatch() {
	if p.batch != nil {
		p.batch.block.Reset()
		p.recycle(p.batch.block)
		p.batch = nil
	}
	p.share.memory.Release(p.held)
	p.held = 0
	p.leaveBulk()
}

// recycle keeps a block that has grown in a slot for the next slot, and no
// more of them than there are slots.
func (p *partition) recycle(block columns.Block) {
	if !p.bulk {
		p.blocks.Put(block)
		return
	}
	select {
	case p.share.large <- block:
	default:
	}
}

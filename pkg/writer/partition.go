package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/dedup"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/plan"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// partition follows one partition. It belongs to the goroutine of Handle.
type partition struct {
	*Writer
	claim  Claim
	log    *slog.Logger
	window *dedup.Window
	shard  int    // where the rows go; tokens are known only there
	share  *share // of the memory, for that shard
	next   int64  // offset to fetch next
	batch  *batch
	held   int64 // of share.memory, for batch
	bulk   bool  // has one of share.slots instead
	behind bool  // the log has more than was fetched
}

func newPartition(w *Writer, claim Claim) *partition {
	p := &partition{
		Writer: w, claim: claim,
		log: w.log.With("topic", claim.Topic(), "partition", claim.Partition()),
	}
	p.aim(p.ownShard())
	return p
}

// close gives back what the partition holds. A batch that was not planned is
// simply forgotten: its records are read again by the next owner.
func (p *partition) close() {
	p.dropBatch()
	p.metrics.forget(p.claim.Partition())
}

// run returns when ctx ends or the partition is lost.
func (p *partition) run(ctx context.Context) {
	for attempt := 0; ; attempt++ {
		begun := time.Now()
		err := p.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case fault.ClassOf(err) == fault.Fenced:
			p.log.Warn("partition lost to another writer", "error", err)
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
			return nil
		}
		if ctx.Err() != nil || fault.ClassOf(err) == fault.Fenced || errors.Is(err, errStartOver) {
			return err
		}
		if err := p.pause(ctx, what, err, attempt); err != nil {
			return err
		}
	}
}

// pause says that what failed is tried again, and waits before that.
func (p *partition) pause(ctx context.Context, what string, err error, attempt int) error {
	p.metrics.retries.WithLabelValues(what).Inc()
	delay := backoff(attempt)
	p.log.Warn("failed, trying again", "operation", what, "error", err, "attempt", attempt+1, "after", delay)
	return sleep(ctx, delay)
}

// maxBackoff is the longest pause between two attempts.
const maxBackoff = 15 * time.Second

// backoff doubles from 100 ms to 15 s: short enough to notice a restarted
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

// resume finds where the last owner stopped, and finishes what it had planned.
func (p *partition) resume(ctx context.Context) error {
	p.dropBatch()
	p.aim(p.ownShard())
	from, metadata, err := p.claim.Committed(ctx)
	if err != nil {
		return err
	}
	start, end, err := p.claim.Bounds(ctx)
	if err != nil {
		return err
	}
	if from < 0 {
		from = start
	}
	planned, ok, err := plan.Parse(from, metadata)
	if err != nil {
		return err
	}
	if ok {
		if ok, err = p.sameLog(ctx, start, end, from, planned); err != nil {
			return err
		}
	}
	switch {
	case ok && planned.To > end:
		// What is missing may come back with a better replica. Without it the range
		// cannot be formed as it was planned.
		return fmt.Errorf("the log ends at %d, before the end of the planned range [%d, %d)", end, from, planned.To)
	case from > end:
		p.log.Error("the log has lost its end, with records that were stored already", "offset", from, "log_end", end)
		from = end
	}
	if err := p.rebuildWindow(ctx, start, from); err != nil {
		return err
	}
	p.next, p.behind = max(from, start), end > from
	p.log.Info("partition taken over", "offset", from, "planned_to", planned.To, "behind", end-from, "window_records", p.window.Len())
	if ok {
		err = p.finish(ctx, from, start, planned)
	}
	if err == nil && from < start {
		p.lost(from, start, end)
	}
	return err
}

// lost says that retention has deleted [from, start) before anybody read it.
func (p *partition) lost(from, start, end int64) {
	p.log.Error("records are gone from the log before they were read: its retention is shorter than the outage",
		"offset", from, "log_start", start, "log_end", end)
	p.metrics.lost.Add(float64(start - from))
}

// sameLog reports whether the log is still the one that the plan was made for:
// a topic may be created anew, and a log may lose its end and get another. What is
// planned has gone then, and the offsets of the range stand for other records.
func (p *partition) sameLog(ctx context.Context, start, end, from int64, planned plan.Plan) (bool, error) {
	if planned.First == 0 || from < start || from >= end {
		return true, nil // nothing to compare
	}
	first := planned.First
	err := p.read(ctx, from, from+1, func(r *record.Record) {
		if r.Offset == from {
			first = r.Time.UnixMilli()
		}
	}, nil)
	if err != nil || first == planned.First {
		return true, err
	}
	p.log.Error("the planned range was of records that the log does not have any more, going on without the plan",
		"from", from, "to", planned.To, "planned_time", time.UnixMilli(planned.First), "time", time.UnixMilli(first))
	return false, nil
}

// aim makes the rows go to a shard. There must be no batch.
func (p *partition) aim(shard int) { p.shard, p.share = shard, p.shareOf(shard) }

// ownShard is where this partition's rows go while the number of shards stays.
func (p *partition) ownShard() int { return p.claim.Partition() % p.store.Shards() }

// rebuildWindow reads the log before offset from as far back as the window reaches.
func (p *partition) rebuildWindow(ctx context.Context, start, from int64) error {
	p.window = dedup.New(dedup.Limits{Age: p.cfg.DedupWindow, Bytes: p.cfg.DedupBytes})
	if from <= start {
		return nil
	}
	last, err := p.lastTime(ctx, start, from)
	if err != nil {
		return err
	}
	offset, err := p.claim.OffsetAt(ctx, last.Add(-p.cfg.DedupWindow))
	if err != nil {
		return err
	}
	// The last owner looked no further back than from the end of the log at
	// that time, and neither do we: what is older is forgotten by its bytes.
	return p.read(ctx, max(start, offset), from, func(r *record.Record) { p.window.Duplicate(r) }, nil)
}

// lastTime returns the timestamp of the last record before offset end. There
// need not be one at the very offset before, where a transaction has left its mark. A
// timestamp in the future is its writer's mistake, and would leave the window empty:
// it counts as now.
func (p *partition) lastTime(ctx context.Context, start, end int64) (time.Time, error) {
	now := time.Now()
	for back := int64(1); end > start; back *= 8 {
		from := max(start, end-back)
		var last time.Time
		err := p.read(ctx, from, end, func(r *record.Record) { last = r.Time }, nil)
		switch {
		case err != nil:
			return now, err
		case last.After(now):
			return now, nil
		case !last.IsZero():
			return last, nil
		}
		end = from
	}
	return now, nil
}

// readWait bounds one fetch of a range that is known to be in the log. When it
// passes and nothing came, although the log goes on, there is nothing in the range. A
// new leader may not know for a moment how far the log goes: then it is an error.
const readWait = 5 * time.Second

// read calls f for every record in [from, to), and corrupt, when given, for
// every batch that cannot be read. What was fetched before is no longer valid
// then. When the log does not reach that far any more, the error is errStartOver.
func (p *partition) read(ctx context.Context, from, to int64, f func(*record.Record), corrupt func(*kafka.CorruptError)) error {
	for from < to {
		fetched, err := p.claim.Fetch(ctx, from, p.share.fetchBytes, readWait)
		if errors.Is(err, kafka.ErrOffsetOutOfRange) {
			return fmt.Errorf("read [%d, %d): %w: %w", from, to, err, errStartOver)
		}
		if bad, ok := asCorrupt(err); ok {
			if corrupt != nil {
				corrupt(bad)
			}
			from = bad.Next
			continue
		}
		if err != nil {
			return err
		}
		for i := range fetched.Records {
			if r := &fetched.Records[i]; r.Offset < to {
				f(r)
			}
		}
		if fetched.Next == from {
			if fetched.HighWatermark < to {
				return fmt.Errorf("nothing came from offset %d on, and the log seems to end at %d, before %d", from, fetched.HighWatermark, to)
			}
			p.log.Error("records that were there are gone from the log", "from", from, "to", to, "high_watermark", fetched.HighWatermark)
			p.metrics.lost.Add(float64(to - from))
			return nil
		}
		from = fetched.Next
	}
	return nil
}

// skipLost returns the offset to go on from when retention has deleted what no
// writer has read yet. When Kafka itself has lost the end of the log, the
// error is errStartOver.
func (p *partition) skipLost(ctx context.Context, offset int64) (int64, error) {
	start, end, err := p.claim.Bounds(ctx)
	switch {
	case err != nil:
		return 0, err
	case offset > end:
		return 0, fmt.Errorf("fetch offset %d: the log ends at %d: %w", offset, end, errStartOver)
	case offset >= start:
		return 0, fmt.Errorf("fetch offset %d: refused as out of range, but the log has [%d, %d)", offset, start, end)
	}
	p.lost(offset, start, end)
	return start, nil
}

// finish forms the planned range that begins at from again, inserts and commits
// it. What lies before start has gone from the log.
//
// The rest of a range that was not taken apart keeps the token of the whole: it
// was stored as a whole or not at all. Of one that was, any piece may be stored. So its
// items are looked up by their keys; and the pieces get tokens of their own when they are
// made of fewer records.
func (p *partition) finish(ctx context.Context, from, start int64, planned plan.Plan) error {
	if planned.Shard >= p.store.Shards() {
		return fmt.Errorf("the range [%d, %d) was planned for shard %d, and may be stored there, but ClickHouse has %d: bring that shard back to its cluster",
			from, planned.To, planned.Shard, p.store.Shards())
	}
	if planned.Shard >= 0 {
		p.aim(planned.Shard)
	}
	// The range may be as large as a batch can be, and so may those of all the
	// other partitions that are taken over now.
	if err := p.share.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	p.bulk = true
	left := min(max(from, start), planned.To)
	p.openBatch(from)
	p.batch.first = planned.First
	if planned.Apart {
		p.batch.from = left
		p.batch.apart, p.batch.lookUp, p.batch.split = true, true, make(map[piece]struct{})
	}
	var failed error
	err := p.read(ctx, left, planned.To, func(r *record.Record) {
		if failed == nil {
			failed = p.take(ctx, r)
		}
	}, p.divertCorrupt)
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	p.batch.to = planned.To
	p.next = max(planned.To, start)
	p.metrics.resumed.Inc()
	if err := p.finishBatch(ctx); err != nil {
		return err
	}
	p.aim(p.ownShard())
	return nil
}

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
	case p.bulk != p.behind, !p.bulk && (p.full() || p.batch.old(&p.cfg)):
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
		if err := p.take(ctx, r); err != nil {
			return err
		}
		if p.full() {
			// The rest is fetched again: a flush may have to fetch, and the
			// rest is better kept for the next whole batch than inserted alone.
			p.next, p.behind = r.Offset+1, fetched.HighWatermark > r.Offset+1
			return p.flush(ctx)
		}
	}
	p.next = fetched.Next
	if p.batch != nil {
		p.batch.to = p.next
	}
	p.metrics.lag(p.claim.Partition(), fetched.HighWatermark-p.next)
	p.behind = fetched.HighWatermark > p.next
	return nil
}

// openBatch makes sure that there is a batch. A new one begins at offset from.
func (p *partition) openBatch(from int64) {
	if p.batch != nil {
		return
	}
	var block Block
	if p.bulk {
		select {
		case block = <-p.share.large:
		default:
		}
	}
	if block == nil {
		block = p.blocks.Get().(Block)
	}
	p.batch = newBatch(block, from)
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
func (p *partition) recycle(block Block) {
	if !p.bulk {
		p.blocks.Put(block)
		return
	}
	select {
	case p.share.large <- block:
	default:
	}
}

package writer

import (
	"context"
	"errors"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// fetch takes what the log has next into the batch, or waits for it as long as
// the batch may wait, and reports whether the batch is due.
func (p *partition) fetch(ctx context.Context, offset int64, e *delivery.Event) error {
	e.Offset, e.Next, e.End, e.Epoch = -1, offset, p.logEnd, -1
	reserved, ok, err := p.reserve(ctx)
	if err != nil {
		return err
	}
	if !ok {
		e.Due = true // storing the batch gives back what it holds
		return nil
	}
	err = p.fetchInto(ctx, offset, int(reserved/fetchFactor), e)
	if reserved > 0 {
		// What the batch has grown by stays held, the rest goes back.
		grown := min(max(p.batch.memory()-p.held, 0), reserved)
		p.held += grown
		p.grown = max(grown, p.grown/2)
		p.share.memory.Release(reserved - grown)
	}
	switch {
	case err != nil:
		return err
	case p.batch == nil:
		p.share.gatherer.forget(p)
		p.leaveBulk()
	// In a slot the batch grows until it is full or the log has no more. A
	// partition that has just fallen behind gives way to those in the slots.
	case p.full(), p.bulk != p.behind, (!p.bulk || e.Next == offset) && p.due():
		e.Due = true
	}
	return nil
}

// reserve makes sure that there is memory for a fetch: in a slot, which holds a
// whole batch, or reserved. It is not ok when there is none and the batch holds
// some.
func (p *partition) reserve(ctx context.Context) (reserved int64, ok bool, err error) {
	if p.behind && p.batch == nil && !p.bulk {
		if err := p.share.slots.Acquire(ctx, 1); err != nil {
			return 0, false, err
		}
		p.bulk = true
	}
	if p.bulk {
		return 0, true, nil
	}
	need := p.fetchMemory()
	if p.share.memory.TryAcquire(need) {
		return need, true, nil
	}
	if p.batch != nil {
		return 0, false, nil
	}
	if err := p.share.memory.Acquire(ctx, need); err != nil {
		return 0, false, err
	}
	return need, true, nil
}

// fetchInto fetches once and takes the records, as many as the batch has room for. maxBytes
// bounds the fetch outside a slot.
func (p *partition) fetchInto(ctx context.Context, offset int64, maxBytes int, e *delivery.Event) error {
	fetched, err := p.collect(ctx, offset, maxBytes)
	if err != nil {
		var bad *kafka.CorruptError
		if errors.As(err, &bad) {
			e.Offset, e.Next = bad.Offset, bad.Next
		}
		return err
	}
	e.Next = fetched.Next
	if len(fetched.Records) > 0 {
		e.Offset, e.First, e.Epoch = fetched.Records[0].Offset, fetched.Records[0].Time.UnixMilli(), fetched.LeaderEpoch
		p.openBatch()
	}
	for i := range fetched.Records {
		r := &fetched.Records[i]
		p.take(r)
		if p.full() {
			// The rest is fetched again: storing may have to fetch, and the rest is
			// better kept for the next whole batch than inserted alone.
			e.Next = r.Offset + 1
			break
		}
	}
	left := fetched.HighWatermark - e.Next
	p.behind = left > 0
	if p.behind && !p.bulk && (p.batch == nil || !p.full()) {
		// A partition is behind only if at least a whole fetch is left.
		p.behind = left >= e.Next-offset && maxBytes >= p.share.fetchBytes
		p.grown = int64(maxBytes) * fetchFactor // the next fetch may take twice as much
	}
	p.logEnd = max(fetched.LogEnd, fetched.HighWatermark)
	e.End = p.logEnd
	p.showLag(p.logEnd)
	p.fetched.Store(!fetched.Throttled)
	return nil
}

func (p *partition) full() bool { return p.batch.full(&p.cfg, p.share.maxBatch) }

// leaveBulk gives up the slot, if there is one. A partition that is behind may
// fill a whole batch only in one of a few slots: otherwise all that are behind
// would share the memory, and insert many small batches.
func (p *partition) leaveBulk() {
	if p.bulk {
		p.share.slots.Release(1)
		p.bulk = false
	}
}

// openBatch makes sure that there is a batch.
func (p *partition) openBatch() {
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
		select {
		case block = <-p.idle:
		default:
			block = p.blocks.Get().(columns.Block)
		}
	}
	p.batch = &batch{block: block}
}

// dropBatch forgets the batch and gives back its memory, or its slot.
func (p *partition) dropBatch() {
	p.share.gatherer.forget(p)
	p.offered, p.alone = false, false
	if p.batch != nil {
		p.recycle(p.batch.block)
		p.batch = nil
	}
	p.share.memory.Release(p.held)
	p.held = 0
	p.leaveBulk()
}

// idleBytes bounds the memory of a block that is kept between two ticks. It is that of
// some hundred spans; larger ones are left to the garbage collector when memory is short.
const idleBytes = 1 << 20

// recycle empties a block and keeps it. Small ones are kept for the next tick: most of what
// decoding them costs is to fill dictionaries, which a block remembers. What has grown in a
// slot is kept for the next slot, and no more of them than there are slots.
func (p *partition) recycle(block columns.Block) {
	block.Reset()
	if !p.bulk {
		if block.Kept() <= idleBytes {
			select {
			case p.idle <- block:
				return
			default:
			}
		}
		p.blocks.Put(block)
		return
	}
	select {
	case p.share.large <- block:
	default:
	}
}

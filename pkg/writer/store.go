package writer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/plan"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// flush announces the batch and stores it.
func (p *partition) flush(ctx context.Context) error {
	b := p.batch
	if b.to <= b.from {
		return fmt.Errorf("store [%d, %d): it is no range: %w", b.from, b.to, errStartOver)
	}
	if b.block.Rows() > 0 {
		if err := p.commitPlan(ctx, ctx); err != nil {
			return err
		}
	}
	return p.finishBatch(ctx)
}

// commitPlan announces the batch as it stands.
func (p *partition) commitPlan(ctx, graceful context.Context) error {
	b := p.batch
	announced := plan.Plan{To: b.to, First: b.first, Shard: p.shard, Apart: b.apart}.Metadata()
	return p.persist(ctx, "commit plan", func(context.Context) error {
		return p.claim.Commit(graceful, b.from, announced)
	})
}

// finishBatch inserts the batch, whose plan is committed, diverts what cannot
// be stored and commits its end. When ctx ends, what is under way may still
// succeed within the grace, but nothing is tried again.
func (p *partition) finishBatch(ctx context.Context) error {
	b := p.batch
	graceful, cancel := withGrace(ctx, min(p.opts.Grace, p.claim.Grace()))
	defer cancel()
	rng := plan.Range{Topic: p.claim.Topic(), Partition: p.claim.Partition(), From: b.from, To: b.to, First: b.first}
	rows := b.block.Rows()
	if rows > 0 {
		if err := p.insert(ctx, graceful, rng); err != nil {
			return err
		}
	}
	if len(b.dead) > 0 {
		err := p.persist(ctx, "produce dead letters", func(context.Context) error {
			return p.produceDead(graceful)
		})
		if err != nil {
			return err
		}
		p.log.Warn("diverted to the dead-letter topic", "records", len(b.dead), "from", b.from, "to", b.to)
	}
	err := p.persist(ctx, "commit", func(context.Context) error {
		return p.claim.Commit(graceful, b.to, "")
	})
	if err != nil {
		return err
	}
	p.metrics.stored(b, rows)
	p.dropBatch()
	return nil
}

// produceDead hands over the dead letters that are not yet. When some of them are larger than the
// topic takes they go one by one, and one that is refused alone goes without its
// value: a letter that is too large must not stop the partition for ever. Those that
// Kafka took at first are there twice then, which replaying does not mind.
func (p *partition) produceDead(ctx context.Context) error {
	b := p.batch
	err := p.dead.Produce(ctx, b.dead[b.deadSent:])
	if !errors.Is(err, kafka.ErrTooLarge) {
		return err
	}
	for ; b.deadSent < len(b.dead); b.deadSent++ {
		letter := &b.dead[b.deadSent]
		err := p.dead.Produce(ctx, []kafka.Outgoing{*letter})
		if errors.Is(err, kafka.ErrTooLarge) && len(letter.Value) > 0 {
			p.log.Error("kafka refuses a dead letter, so its value is left out", "error", err, "bytes", len(letter.Value))
			p.metrics.truncated.Inc()
			*letter = truncated(letter, err)
			err = p.dead.Produce(ctx, []kafka.Outgoing{*letter})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// causeBytes bounds the cause in a letter without a value: it may quote one.
const causeBytes = 1000

// truncated returns the letter without its value, which Kafka refused.
func truncated(letter *kafka.Outgoing, refused error) kafka.Outgoing {
	var l record.DeadLetter
	for _, h := range letter.Headers {
		l.Set(h.Key, h.Value)
	}
	l.Cause = strings.ToValidUTF8(l.Cause[:min(len(l.Cause), causeBytes)], "") + "; the value is left out: " + refused.Error()
	l.Truncated = int64(len(letter.Value))
	return kafka.Outgoing{Value: []byte{}, Headers: l.Headers()}
}

// withGrace returns a context that ends some time after ctx does.
func withGrace(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	graceful, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		_ = sleep(graceful, grace)
		cancel()
	})
	return graceful, func() { stop(); cancel() }
}

// insert stores the block, as a whole or, when ClickHouse refuses some of its
// rows, without those. What may succeed later is tried for ever.
func (p *partition) insert(ctx, graceful context.Context, rng plan.Range) error {
	return p.persist(ctx, "insert", func(context.Context) error {
		begun := time.Now()
		err := p.insertOnce(ctx, graceful, rng)
		if err == nil {
			p.metrics.insertSeconds.Observe(time.Since(begun).Seconds())
		}
		return err
	})
}

// insertOnce tries the block, or its pieces from the time on when it was
// refused: were the whole accepted after all, when pieces of it are stored, these
// would be stored twice. So the plan says so before the first piece is tried.
func (p *partition) insertOnce(ctx, graceful context.Context, rng plan.Range) error {
	if !p.batch.apart {
		err := p.insertBlock(graceful, rng.Token(), p.batch.block)
		if fault.ClassOf(err) != fault.Rejected {
			return err
		}
		p.log.Warn("refused as a whole, trying its rows", "error", err)
		p.batch.apart, p.batch.split = true, make(map[piece]struct{})
		if err := p.commitPlan(ctx, graceful); err != nil {
			return err
		}
	}
	return p.insertPieces(graceful, rng)
}

func (p *partition) insertBlock(ctx context.Context, token string, block Block) error {
	err := p.store.Insert(ctx, p.shard, block.Table(), token, block.Input(), block.Rows())
	if err != nil {
		return fmt.Errorf("insert %s: %w", token, err)
	}
	return nil
}

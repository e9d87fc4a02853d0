package writer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// flush announces the batch and stores it.
func (p *partition) flush(ctx context.Context) error {
	b := p.batch
	if b.to <= b.from {
		return fmt.Errorf("store [%d, %d): it is no range: %w", b.from, b.to, errStartOver)
	}
	if err := p.appendResent(ctx); err != nil {
		return err
	}
	if b.block.Rows() > 0 {
		planned := delivery.Plan{To: b.to, First: b.first, Shard: p.shard}
		if err := p.commit(ctx, ctx, "commit plan", b.from, b.before, planned); err != nil {
			return err
		}
	}
	return p.finishBatch(ctx)
}

// commit makes offset, and what is planned there, what the group knows of the partition. epoch
// is that of the last record before offset.
func (p *partition) commit(ctx, graceful context.Context, what string, offset int64, epoch int32, planned delivery.Plan) error {
	said := delivery.Commit{Topic: p.topicID(), Plan: planned}
	if p.unsure > offset {
		said.Unsure = p.unsure
	}
	position := kafka.Position{Offset: offset, LeaderEpoch: epoch, Metadata: said.Metadata(offset)}
	err := p.persist(ctx, what, func(context.Context) error { return p.claim.CommitPosition(graceful, position) })
	if err == nil {
		p.committed.Store(offset)
	}
	return err
}

// finishBatch inserts the batch, whose plan is committed, diverts what cannot
// be stored and commits its end. When ctx ends, what is under way may still
// succeed within the grace, but nothing is tried again.
func (p *partition) finishBatch(ctx context.Context) error {
	b := p.batch
	graceful, cancel := withGrace(ctx, min(p.opts.Grace, p.claim.Grace()))
	defer cancel()
	rng := p.rangeOf(b)
	rows, size := b.block.Rows()+b.found, b.block.Bytes()
	if b.block.Rows() > 0 {
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
		p.log.Warn("diverted to the dead-letter topic", "records", len(b.dead)+b.deadMore, "from", b.from, "to", b.to)
	}
	if err := p.commit(ctx, graceful, "commit", b.to, p.epoch, delivery.Plan{}); err != nil {
		return err
	}
	p.metrics.stored(b, rows, size)
	p.refusedAt = -1
	p.dropBatch()
	return nil
}

// topicID is the id of the topic, empty where the brokers have none.
func (p *partition) topicID() string {
	if id := p.claim.TopicID(); id != (kafka.TopicID{}) {
		return id.String()
	}
	return ""
}

func (p *partition) rangeOf(b *batch) delivery.Range {
	return delivery.Range{Topic: p.claim.Topic(), Partition: p.claim.Partition(), From: b.from, To: b.to, First: b.first, TopicID: p.topicID()}
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

// repeatFor is how long a block that ClickHouse answered with an error is sent again under its token
// before its rows are looked up instead. Within it the table cannot have forgotten the token: it
// remembers at least ten thousand blocks (migrations), and the server has not been away. Sending the
// whole again also fills the views that depend on the table, where one of them made the insert fail.
const repeatFor = 30 * time.Second

// insert stores the block, as a whole or, when ClickHouse refuses some of its
// rows, without those. What may succeed later is tried for ever.
func (p *partition) insert(ctx, graceful context.Context, rng delivery.Range) error {
	return p.persist(ctx, "insert", func(context.Context) error {
		begun := time.Now()
		err := p.insertOnce(ctx, graceful, rng)
		if err == nil {
			p.metrics.insertSeconds.Observe(time.Since(begun).Seconds())
		}
		return err
	})
}

// insertOnce tries the block. Only the very first attempt of its very first owner is believed
// without a look: after any other, which rows are stored is asked and not concluded.
//
//   - An error proves nothing: a view that depends on the table may have failed after the rows
//     were in it, or the answer was lost.
//   - Success after an error proves nothing either: ClickHouse writes down the token before the
//     rows are in place, so a crash between the two leaves a token without rows.
func (p *partition) insertOnce(ctx, graceful context.Context, rng delivery.Range) error {
	b := p.batch
	if b.unknown && !p.repeats() {
		tried := !b.tried.IsZero()
		if err := p.keepMissing(ctx, graceful, rng); err != nil {
			return err
		}
		if b.block.Rows() == 0 {
			if tried {
				p.viewFailed(errors.New("see the attempts before"))
			}
			return nil
		}
	}
	first := b.tried.IsZero()
	if first {
		b.tried = time.Now()
	}
	if b.token == "" && b.unknown && !b.planned {
		b.renew(rng)
	} else if b.token == "" {
		b.token = rng.Token()
	}
	fresh := b.fresh
	b.fresh = false
	err := p.insertBlock(graceful, b.token, b.block)
	if err != nil {
		err = fmt.Errorf("insert %s: %w", b.token, err)
	}
	switch {
	case err == nil && (!b.unknown || fresh):
		p.share.viewsFail.Store(false)
		return nil
	case err == nil:
		return p.verify(ctx, graceful, rng)
	case errors.Is(err, clickhouse.ErrExpired): // nothing was sent
		b.fresh = fresh
		if first {
			b.tried = time.Time{}
		}
		return err
	case fault.ClassOf(err) != fault.Rejected && !p.divisible(err):
		b.unknown, b.answered = true, clickhouse.Answered(err)
		return err
	}
	p.log.Warn("refused as a whole, trying its rows", "error", err)
	b.unknown = true
	if err := p.keepMissing(ctx, graceful, rng); err != nil {
		return err
	}
	if b.block.Rows() == 0 {
		p.viewFailed(err)
		return nil
	}
	b.tried = time.Time{} // from here on, pieces of it may be stored under tokens of their own
	return p.insertPieces(ctx, graceful, rng)
}

// divideAfter is how often ClickHouse must answer a block with an error that smaller or other blocks
// might not meet, until the block is taken apart for it.
const divideAfter = 5

// divisible reports whether the block, which was refused with err, is to be taken apart although err is
// not known to depend on values: a limit of memory that it exceeds as a whole, or a function that an operator's
// default or constraint calls.
func (p *partition) divisible(err error) bool {
	if !clickhouse.Divisible(err) {
		return false
	}
	p.batch.divisible++
	return p.batch.divisible >= divideAfter
}

// repeats reports whether the block that was tried may be sent again as it is. Wall clock and
// monotonic clock must both say so: one stands still while a machine is suspended, and the
// other may be set.
func (p *partition) repeats() bool {
	b := p.batch
	if b.tried.IsZero() || !b.answered || p.share.viewsFail.Load() {
		return false
	}
	now := time.Now()
	wall := now.Round(0).Sub(b.tried.Round(0))
	return now.Sub(b.tried) < repeatFor && 0 <= wall && wall < repeatFor
}

// keepMissing looks the rows of the block up and leaves only those that are not stored. What
// was under way to ClickHouse for the partition has ended before the look.
func (p *partition) keepMissing(ctx, graceful context.Context, rng delivery.Range) error {
	b := p.batch
	if err := p.store.Settle(graceful, p.shard, p.query()); err != nil {
		return err
	}
	var keys []signal.Key
	b.block.Keys(func(key signal.Key) { keys = append(keys, key) })
	stored, err := p.lookUp(ctx, "look up "+p.signal.Items, keys, p.unsure > b.from)
	if err != nil || len(stored) == 0 {
		return err
	}
	if err := p.reform(graceful, rng, stored); err != nil {
		return err
	}
	found := len(keys) - b.block.Rows()
	b.found += found
	if p.unsure > b.from && b.tried.IsZero() { // not by us
		b.unsureFound += found
		p.unsure = max(p.unsure, p.logEnd) // nor may what follows be
	}
	b.tried = time.Time{} // another block than before
	p.log.Info("rows are stored already", "range", rng.Token(), "stored", found, "missing", b.block.Rows())
	return nil
}

// reform makes the block anew from the log, without the rows that are stored.
func (p *partition) reform(ctx context.Context, rng delivery.Range, stored map[signal.Key]struct{}) error {
	records, keep, err := p.load(ctx, rng)
	if err != nil {
		return err
	}
	b := p.batch
	b.block.Reset()
	b.kept = b.kept[:0]
	for i := range records {
		for _, it := range p.items(&records[i]) {
			if _, ok := stored[it.key]; ok {
				keep[i].leaveOut(it.index)
			}
		}
		before := b.block.Rows()
		if _, err := b.block.Append(records[i].Value, p.source(&records[i], skipping(&keep[i], nil))); err != nil {
			return fmt.Errorf("decode offset %d again: %w", records[i].Offset, err)
		}
		if b.block.Rows() > before {
			b.kept = append(b.kept, keep[i])
		}
	}
	return nil
}

// load reads the records with rows in the batch again. They are the caller's.
func (p *partition) load(ctx context.Context, rng delivery.Range) (records []delivery.Record, keep []kept, err error) {
	b := p.batch
	byOffset := make(map[int64]kept, len(b.kept))
	first := b.to // the log may have lost what lies before it
	for i := range b.kept {
		byOffset[b.kept[i].offset] = b.kept[i]
		first = min(first, b.kept[i].offset)
	}
	err = p.read(ctx, first, b.to, func(r *delivery.Record) {
		if k, ok := byOffset[r.Offset]; ok {
			own := *r
			own.Value = bytes.Clone(r.Value)
			records, keep = append(records, own), append(keep, k)
		}
	}, nil)
	if err == nil && len(records) != len(b.kept) {
		err = fmt.Errorf("read %s again: %d of its %d records are left in the log: %w", rng.Token(), len(records), len(b.kept), errStartOver)
	}
	return records, keep, err
}

// verify looks whether all rows are there that ClickHouse took. If not, it knows the token of
// rows that it has lost, and the missing ones need another.
func (p *partition) verify(ctx, graceful context.Context, rng delivery.Range) error {
	if err := p.keepMissing(ctx, graceful, rng); err != nil {
		return err
	}
	b := p.batch
	if b.block.Rows() == 0 {
		return nil
	}
	p.metrics.tokensWithoutRows.Inc()
	b.renew(rng)
	return fmt.Errorf("insert %s: ClickHouse knows the token and lacks %d of the rows: a crash or a full disk came between the two", rng.Token(), b.block.Rows())
}

// renew gives the batch a token that no other insert has.
func (b *batch) renew(rng delivery.Range) {
	b.token, b.fresh = rng.Token()+"/again-"+rand.Text(), true
}

// viewFailed reports that the rows of the block are stored although the insert failed, so that an
// object that depends on the table may lack them. Until an insert succeeds at once, others are
// looked up after their first failure: what is broken for good must not hold up each of them.
func (p *partition) viewFailed(err error) {
	p.share.viewsFail.Store(true)
	p.metrics.viewFailures.Inc()
	p.log.Error("the insert failed after its rows were stored: a view that depends on the table may lack them",
		"table", p.batch.block.Table(), "rows", p.batch.found, "error", err)
}

// query is how the inserts of the partition begin their ids in ClickHouse.
func (p *partition) query() string {
	return fmt.Sprintf("%s/%d", p.claim.Topic(), p.claim.Partition())
}

func (p *partition) insertBlock(ctx context.Context, token string, block columns.Block) error {
	guard := clickhouse.Guard{Query: p.query(), Until: p.claim.Lease}
	err := p.store.InsertGuarded(ctx, guard, p.shard, block.Table(), token, block.Input(), block.Rows())
	if err == nil {
		p.share.accepted.Add(1)
	}
	return err
}

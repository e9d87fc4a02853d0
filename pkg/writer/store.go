package writer

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// commit makes an offset and its metadata the position of the
// partition.
func (p *partition) commit(ctx context.Context, a delivery.CommitOffset) error {
	a.Commit.Plan.Joined = a.Commit.Plan.To != 0 && !p.bulk
	err := p.claim.CommitPosition(ctx, kafka.Position{Offset: a.Offset, LeaderEpoch: a.Epoch, Metadata: a.Commit.Metadata(a.Offset)})
	if err == nil {
		p.committed.Store(a.Offset)
	}
	return err
}

// insert stores the block, or with rows some of what was loaded. again says that
// the block was sent more than once.
func (p *partition) insert(owned, ctx context.Context, token string, rows []int) (again bool, err error) {
	if rows != nil {
		return false, p.insertRows(ctx, token, rows)
	}
	return p.insertBatch(owned, ctx, token, p.batch.block)
}

// lookUp returns those of the rows that are not stored, numbered as they are in
// the block, or with rows in what was loaded.
func (p *partition) lookUp(ctx context.Context, rows []int, anyShard bool) (missing []int, err error) {
	b := p.batch
	var keys []signal.Key
	if rows == nil {
		b.block.Keys(func(key signal.Key) { keys = append(keys, key) })
	}
	for _, row := range rows {
		keys = append(keys, b.loaded.rows[row].key)
	}
	b.stored, err = p.existing(ctx, keys, anyShard)
	if err != nil {
		return nil, err
	}
	for i, key := range keys {
		if _, ok := b.stored[key]; ok {
			continue
		}
		if rows != nil {
			i = rows[i]
		}
		missing = append(missing, i)
	}
	return missing, nil
}

// existing returns those of keys that are stored: at the partition's shard, or,
// where they may have come while it had another, at any.
func (p *partition) existing(ctx context.Context, keys []signal.Key, anyShard bool) (map[signal.Key]struct{}, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	p.metrics.lookedUp.Add(float64(len(keys)))
	return p.find.Existing(ctx, p.shard, anyShard, &p.table, keys)
}

// keepMissing leaves only those rows in the block that the last look-up did not
// find. It forms the block anew from the log, unless nothing is left of it.
func (p *partition) keepMissing(ctx context.Context) error {
	b, missing := p.batch, 0
	b.block.Keys(func(key signal.Key) {
		if _, ok := b.stored[key]; !ok {
			missing++
		}
	})
	if missing == 0 {
		b.block.Reset()
		b.kept = b.kept[:0]
		return nil
	}
	records, all, err := p.load(ctx)
	if err != nil {
		return err
	}
	b.block.Reset()
	b.kept = b.kept[:0]
	for i := range records {
		k, before := all[i], b.block.Rows()
		err := p.form(b.block, &records[i], func(index int, key signal.Key) bool {
			if _, absent := k.absent[index]; absent {
				return false
			}
			_, stored := b.stored[key]
			if stored {
				k.leaveOut(index)
			}
			return !stored
		})
		if err != nil {
			return err
		}
		if b.block.Rows() > before {
			b.kept = append(b.kept, k)
		}
	}
	b.stored = nil
	return nil
}

// form appends those items of a record that keep returns true for to a block.
// The record was decoded before, so one that is malformed is another one.
func (p *partition) form(block columns.Block, r *delivery.Record, keep func(index int, key signal.Key) bool) error {
	_, err := block.Append(r.Value, p.source(r, func(index int, key signal.Key) bool { return !keep(index, key) }))
	if err != nil {
		return fmt.Errorf("decode offset %d again: %w: %w", r.Offset, err, errLogChanged)
	}
	return nil
}

// load reads the records with rows in the block again. They are the caller's.
func (p *partition) load(ctx context.Context) (records []delivery.Record, keep []kept, err error) {
	b := p.batch
	byOffset := make(map[int64]kept, len(b.kept))
	var first, to int64
	for i, k := range b.kept {
		byOffset[k.offset] = k
		if i == 0 {
			first = k.offset
		}
		first, to = min(first, k.offset), max(to, k.offset+1) // resent records stand after the others
	}
	_, err = p.read(ctx, first, to, func(r *delivery.Record) {
		if k, ok := byOffset[r.Offset]; ok {
			own := *r
			own.Value = bytes.Clone(r.Value)
			records, keep = append(records, own), append(keep, k)
		}
	}, nil)
	if err == nil && len(records) != len(b.kept) {
		err = fmt.Errorf("read [%d, %d) again: %d of its %d records are left in the log: %w", first, to, len(records), len(b.kept), errLogChanged)
	}
	return records, keep, err
}

// loaded is what the rows of a block were made of.
type loaded struct {
	records []delivery.Record
	rows    []origin
}

// origin is the item that a row is made of.
type origin struct {
	record int // in loaded.records
	item
}

// loadRows reads the batch's records again, for inserts of some of their rows.
// It returns how many rows there are.
func (p *partition) loadRows(ctx context.Context) (int, error) {
	records, kept, err := p.load(ctx)
	if err != nil {
		return 0, err
	}
	l := &loaded{records: records}
	for i := range records {
		for _, it := range p.items(&records[i]) {
			if _, absent := kept[i].absent[it.index]; !absent {
				l.rows = append(l.rows, origin{i, it})
			}
		}
	}
	p.batch.loaded = l
	return len(l.rows), nil
}

// insertRows stores some of the rows that were loaded as a block of their own.
func (p *partition) insertRows(ctx context.Context, token string, rows []int) error {
	type place struct{ record, index int }
	l := p.batch.loaded
	wanted := make(map[place]struct{}, len(rows))
	for _, row := range rows {
		wanted[place{l.rows[row].record, l.rows[row].index}] = struct{}{}
	}
	block := p.blocks.Get().(columns.Block)
	defer p.blocks.Put(block)
	defer block.Reset()
	for i := range l.records {
		err := p.form(block, &l.records[i], func(index int, _ signal.Key) bool {
			_, ok := wanted[place{i, index}]
			return ok
		})
		if err != nil {
			return err
		}
	}
	return p.insertAlone(ctx, token, block)
}

// stored counts the batch, whose end is committed.
func (p *partition) stored(n delivery.Stored) {
	b := p.batch
	p.metrics.stored(b, n)
	if len(b.dead) > 0 {
		p.log.Warn("diverted to the dead-letter topic", slog.Int("records", len(b.dead)+b.deadMore), slog.Int64("from", n.From), slog.Int64("to", n.To))
	}
}

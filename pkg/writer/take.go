package writer

import (
	"context"
	"errors"
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// take decodes one record into the batch, or decides why not. It fails only
// when ctx ends.
func (p *partition) take(ctx context.Context, r *record.Record) error {
	b := p.batch
	b.to = r.Offset + 1
	if p.window.Duplicate(r) {
		b.duplicates += otlp.Spans(r.Value)
		return nil
	}
	b.noteReceived(r.Meta.Received)
	k := kept{offset: r.Offset}
	if r.Meta.Resend || b.lookUp {
		if err := p.findResent(ctx, r, &k); err != nil {
			return err
		}
	}
	refused, err := b.block.Append(r.Value, p.source(r, &k, b.ids))
	if err != nil {
		b.divert(p.claim, r, r.Value, err.Error())
		return nil
	}
	b.kept = append(b.kept, k)
	b.resent += len(k.absent)
	return p.divertRefused(r, refused)
}

// divertCorrupt notes in the dead letters that a batch of the log cannot be
// read: its bytes do not match their checksum, or are no record batch.
func (p *partition) divertCorrupt(bad *kafka.CorruptError) {
	p.batch.to = bad.Next
	p.batch.divert(p.claim, &record.Record{Offset: bad.Offset}, nil, bad.Error())
	p.metrics.lost.Add(float64(bad.Next - bad.Offset))
}

// asCorrupt returns the CorruptError in err, if there is one.
func asCorrupt(err error) (*kafka.CorruptError, bool) {
	var bad *kafka.CorruptError
	return bad, errors.As(err, &bad)
}

// source is how the rows of r are chosen: without the spans that are absent,
// and noting the ids of the others where a set for them is given.
func (p *partition) source(r *record.Record, k *kept, ids map[clickhouse.SpanKey]struct{}) columns.Source {
	src := columns.Source{Agent: r.Meta.Agent, Window: p.accepted(r)}
	if len(k.absent) > 0 || ids != nil {
		src.Skip = func(index int, head *otlp.Head) bool {
			if _, absent := k.absent[index]; absent {
				return true
			}
			if ids != nil {
				ids[keyOf(head)] = struct{}{}
			}
			return false
		}
	}
	return src
}

// divertRefused hands the spans of r that no gateway would have accepted to
// the dead-letter topic. Only other programs than ours write such records.
func (p *partition) divertRefused(r *record.Record, refused []columns.Refused) error {
	for _, f := range refused {
		value, err := otlp.Select(r.Value, func(i int) bool { return i == f.Index })
		if err != nil {
			return fmt.Errorf("select span %d of offset %d: %w", f.Index, r.Offset, err)
		}
		p.batch.divert(p.claim, r, value, "span refused for its "+f.Reason.String())
	}
	return nil
}

// findResent notes in k which spans of r are stored already, or are in the
// batch already. Unlike the window this works however late the copy comes.
//
// After a crash the same question may get another answer: rows of the range
// that the dead writer did store are found and left out. The insert's token still names
// the range, so ClickHouse either has the block and drops the rest of it, or has none of it.
// Where a block was cut at midnight and only one half of it was stored, that half is found here, and
// the other is inserted.
func (p *partition) findResent(ctx context.Context, r *record.Record, k *kept) error {
	b := p.batch
	if b.ids == nil {
		b.ids = make(map[clickhouse.SpanKey]struct{})
		b.block.Heads(func(head *otlp.Head) { b.ids[keyOf(head)] = struct{}{} })
	}
	var keys []clickhouse.SpanKey
	var indexes []int
	err := p.listing(r.Value, p.accepted(r), func(index int, head *otlp.Head) {
		keys = append(keys, keyOf(head))
		indexes = append(indexes, index)
	})
	if err != nil || len(keys) == 0 {
		return nil //nolint:nilerr // the caller finds the record malformed again, and diverts it
	}
	var stored map[clickhouse.SpanKey]struct{}
	err = p.persist(ctx, "look up resent spans", func(ctx context.Context) error {
		var err error
		stored, err = p.store.ExistingSpans(ctx, p.shard, keys)
		return err
	})
	if err != nil {
		return err
	}
	k.absent = make(map[int]struct{})
	for i, key := range keys {
		_, inTable := stored[key]
		_, inBatch := b.ids[key]
		if inTable || inBatch {
			k.absent[indexes[i]] = struct{}{}
		}
	}
	return nil
}

// listing calls f for every acceptable span of a request.
func (p *partition) listing(value []byte, window otlp.Window, f func(index int, head *otlp.Head)) error {
	scratch := p.blocks.Get().(*columns.Spans)
	defer p.blocks.Put(scratch)
	defer scratch.Reset()
	_, err := scratch.Append(value, columns.Source{Window: window, Skip: func(index int, head *otlp.Head) bool {
		f(index, head)
		return true
	}})
	return err
}

func keyOf(head *otlp.Head) clickhouse.SpanKey {
	return clickhouse.SpanKey{TraceID: [16]byte(head.TraceID), SpanID: [8]byte(head.SpanID), Start: int64(head.Start)}
}

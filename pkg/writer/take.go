package writer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// take decodes one record into the batch, or decides why not. It fails only
// when ctx ends.
func (p *partition) take(ctx context.Context, r *record.Record) error {
	b := p.batch
	b.to = r.Offset + 1
	if p.window.Duplicate(r) {
		b.duplicates += p.kind.Count(r.Value)
		return nil
	}
	b.noteReceived(r.Time)
	k := kept{offset: r.Offset}
	if r.Meta.Resend || b.lookUp {
		if err := p.findResent(ctx, r, &k); err != nil {
			return err
		}
	}
	refused, err := b.block.Append(r, p.accepted(r), skipping(&k, b.keys))
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

// skipping leaves out the items that are absent, and notes the keys of the others where a set for
// them is given. It is nil where there is nothing to do.
func skipping(k *kept, keys map[Key]struct{}) func(int, Key) bool {
	if len(k.absent) == 0 && keys == nil {
		return nil
	}
	return func(index int, key Key) bool {
		if _, absent := k.absent[index]; absent {
			return true
		}
		if keys != nil {
			keys[key] = struct{}{}
		}
		return false
	}
}

// divertRefused hands the items of r that no gateway would have accepted to the dead-letter
// topic, those refused for the same reason in one letter: so letters stay few, and what
// items have in common is repeated no more often than there are reasons. Only other programs than ours
// write such records.
func (p *partition) divertRefused(r *record.Record, refused []Refused) error {
	indexes := map[string]map[int]bool{}
	var reasons []string // in the record's order
	for _, f := range refused {
		if indexes[f.Reason] == nil {
			indexes[f.Reason] = map[int]bool{}
			reasons = append(reasons, f.Reason)
		}
		indexes[f.Reason][f.Index] = true
	}
	for _, reason := range reasons {
		value, err := p.kind.Select(r.Value, func(i int) bool { return indexes[reason][i] })
		if err != nil {
			return fmt.Errorf("select items of offset %d: %w", r.Offset, err)
		}
		cause := strings.TrimSuffix(p.kind.Items(), "s") + " refused for its " + reason
		if n := len(indexes[reason]); n > 1 {
			cause = fmt.Sprintf("%d %s refused for their %s", n, p.kind.Items(), reason)
		}
		p.batch.divert(p.claim, r, value, cause)
	}
	return nil
}

// findResent notes in k which items of r are stored already, or are in the
// batch already. Unlike the window this works however late the copy comes.
//
// After a crash the same question may get another answer: rows of the range
// that the dead writer did store are found and left out. The insert's token still names
// the range, so ClickHouse either has the block and drops the rest of it, or has none of it.
// Where a block was cut at midnight and only one half of it was stored, that half is found here, and
// the other is inserted.
func (p *partition) findResent(ctx context.Context, r *record.Record, k *kept) error {
	b := p.batch
	if b.keys == nil {
		b.keys = make(map[Key]struct{})
		b.block.Keys(func(key Key) { b.keys[key] = struct{}{} })
	}
	var keys []Key
	var indexes []int
	err := p.listing(r, func(index int, key Key) {
		keys = append(keys, key)
		indexes = append(indexes, index)
	})
	if err != nil || len(keys) == 0 {
		return nil //nolint:nilerr // the caller finds the record malformed again, and diverts it
	}
	var stored map[Key]struct{}
	err = p.persist(ctx, "look up resent "+p.kind.Items(), func(ctx context.Context) error {
		var err error
		stored, err = p.kind.Existing(ctx, p.shard, keys)
		return err
	})
	if err != nil {
		return err
	}
	k.absent = make(map[int]struct{})
	for i, key := range keys {
		_, inTable := stored[key]
		_, inBatch := b.keys[key]
		if inTable || inBatch {
			k.absent[indexes[i]] = struct{}{}
		}
	}
	return nil
}

// listing calls f for every acceptable item of a record.
func (p *partition) listing(r *record.Record, f func(index int, key Key)) error {
	scratch := p.blocks.Get().(Block)
	defer p.blocks.Put(scratch)
	defer scratch.Reset()
	_, err := scratch.Append(r, p.accepted(r), func(index int, key Key) bool {
		f(index, key)
		return true
	})
	return err
}

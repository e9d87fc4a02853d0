package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// take decodes one record into the batch, or decides why not. One that says it may have been
// delivered before waits, see appendResent. The window remembers such a record and never drops it:
// it may be the replay of a dead letter, and a record that was diverted whole has the same content.
func (p *partition) take(r *delivery.Record) {
	b := p.batch
	b.to = r.Offset + 1
	if p.window.Duplicate(r) && !r.Meta.Resend {
		b.duplicates += p.signal.Count(r.Value)
		return
	}
	b.noteReceived(r.Time)
	if r.Meta.Resend {
		own := *r
		own.Value = bytes.Clone(r.Value)
		b.resent = append(b.resent, own)
		b.resentSize += int64(len(own.Value))
		b.resentItems += p.signal.Count(r.Value)
		return
	}
	p.append(r, kept{offset: r.Offset}, nil)
}

// append decodes one record into the block, without the items that k lists as absent. keys
// takes the keys of the others where it is not nil.
func (p *partition) append(r *delivery.Record, k kept, keys map[signal.Key]struct{}) {
	b := p.batch
	refused, err := b.block.Append(r.Value, p.source(r, skipping(&k, keys)))
	if err != nil {
		b.divert(p.claim, r, r.Value, err.Error())
		return
	}
	b.kept = append(b.kept, k)
	p.divertRefused(r, refused)
}

// divertCorrupt notes in the dead letters that a batch of the log cannot be
// read: its bytes do not match their checksum, or are no record batch.
func (p *partition) divertCorrupt(bad *kafka.CorruptError) {
	p.batch.to = bad.Next
	p.batch.divert(p.claim, &delivery.Record{Offset: bad.Offset}, nil, bad.Error())
	p.metrics.lost.Add(float64(bad.Next - bad.Offset))
}

// asCorrupt returns the CorruptError in err, if there is one.
func asCorrupt(err error) (*kafka.CorruptError, bool) {
	var bad *kafka.CorruptError
	return bad, errors.As(err, &bad)
}

// skipping leaves out the items that are absent, and notes the keys of the others where a set for
// them is given. It is nil where there is nothing to do.
func skipping(k *kept, keys map[signal.Key]struct{}) func(int, signal.Key) bool {
	if len(k.absent) == 0 && keys == nil {
		return nil
	}
	return func(index int, key signal.Key) bool {
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
// topic, those refused for the same reason in one letter: so letters stay few, and they repeat
// what the items share no more often than there are reasons. Only other programs than ours
// write such records.
func (p *partition) divertRefused(r *delivery.Record, refused []signal.Refused) {
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
		cause := p.signal.Item + " refused for its " + reason
		if n := len(indexes[reason]); n > 1 {
			cause = fmt.Sprintf("%d %s refused for their %s", n, p.signal.Items, reason)
		}
		p.divertItems(r, indexes[reason], cause)
	}
}

// divertItems makes one dead letter of some items of r.
func (p *partition) divertItems(r *delivery.Record, indexes map[int]bool, cause string) {
	value, err := p.signal.Select(r.Value, func(i int) bool { return indexes[i] })
	if err != nil { // it was decoded a moment ago, so it can be selected from
		value, cause = r.Value, fmt.Sprintf("%s; the letter has the whole record, because: %s", cause, err)
	}
	p.batch.diverted += len(indexes)
	p.batch.divert(p.claim, r, value, cause)
}

// appendResent takes the records that say they may have been delivered before into the block,
// without the items that are stored or in the batch already. Unlike the window this works
// however late a copy comes. One question serves all records of the batch.
//
// After a crash the same question may get another answer: rows of the range that the dead
// writer stored are found and left out. So are all others before the range is inserted again,
// see keepMissing.
func (p *partition) appendResent(ctx context.Context) error {
	b := p.batch
	if len(b.resent) == 0 {
		return nil
	}
	var keys []signal.Key
	items := make([][]item, len(b.resent))
	for i := range b.resent {
		items[i] = p.items(&b.resent[i])
		for _, it := range items[i] {
			keys = append(keys, it.key)
		}
	}
	stored, err := p.lookUp(ctx, "look up resent "+p.signal.Items, keys, true)
	if err != nil {
		return err
	}
	known := make(map[signal.Key]struct{}, b.block.Rows())
	b.block.Keys(func(key signal.Key) { known[key] = struct{}{} })
	for i := range b.resent {
		k := kept{offset: b.resent[i].Offset}
		for _, it := range items[i] {
			_, inTable := stored[it.key]
			_, inBatch := known[it.key]
			if inTable || inBatch {
				k.leaveOut(it.index)
			}
		}
		b.copies += len(k.absent)
		p.append(&b.resent[i], k, known)
	}
	b.resent, b.resentSize, b.resentItems = nil, 0, 0
	return nil
}

// lookUp returns those of keys that are stored: at the partition's shard, or, where they may
// have come while it had another, at any.
func (p *partition) lookUp(ctx context.Context, what string, keys []signal.Key, anyShard bool) (map[signal.Key]struct{}, error) {
	var stored map[signal.Key]struct{}
	if len(keys) == 0 {
		return stored, nil
	}
	err := p.persist(ctx, what, func(ctx context.Context) error {
		var err error
		stored, err = p.find.Existing(ctx, p.shard, anyShard, &p.table, keys)
		return err
	})
	p.metrics.lookedUp.Add(float64(len(keys)))
	return stored, err
}

// item is one of a record that can be stored.
type item struct {
	index int // in its record
	key   signal.Key
}

// items lists those of a record. A record that is malformed has none: it is found out, and
// diverted, when it is appended.
func (p *partition) items(r *delivery.Record) (items []item) {
	scratch := p.blocks.Get().(columns.Block)
	defer p.blocks.Put(scratch)
	defer scratch.Reset()
	_, err := scratch.Append(r.Value, p.source(r, func(index int, key signal.Key) bool {
		items = append(items, item{index, key})
		return true
	}))
	if err != nil {
		return nil
	}
	return items
}

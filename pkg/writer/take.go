package writer

import (
	"bytes"
	"context"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// take decodes one record into the batch, or decides why not. A record that says
// it may have been delivered before waits, see takeResent. The window remembers
// such a record and never drops it: it may be the replay of a dead letter, and a
// record that was diverted whole has the same content.
func (p *partition) take(r *delivery.Record) {
	b := p.batch
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

// append decodes one record into the block, without the items that k lists as
// absent. It adds the keys of the others to keys, unless that is nil.
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

// skipping returns a function that leaves out the items that are absent, and adds
// the keys of the others to keys, unless that is nil. It returns nil when there is
// nothing to do.
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

// takeResent takes the records that say they may have been delivered before into
// the block, without the items that are stored or in the batch already. Unlike
// the window this works however late a copy comes. One query serves all records
// of the batch.
func (p *partition) takeResent(ctx context.Context) error {
	b := p.batch
	var keys []signal.Key
	items := make([][]item, len(b.resent))
	for i := range b.resent {
		items[i] = p.items(&b.resent[i])
		for _, it := range items[i] {
			keys = append(keys, it.key)
		}
	}
	stored, err := p.existing(ctx, keys, true)
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

// item is one of a record that can be stored.
type item struct {
	index int // in its record
	key   signal.Key
}

// items lists the items of a record that can be stored. A malformed record has
// none; append diverts it.
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

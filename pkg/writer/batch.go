package writer

import (
	"time"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// batch holds the rows and dead letters of a range of records.
type batch struct {
	received time.Time // in Kafka, of the oldest record that says so
	block    columns.Block
	kept     []kept // the records that have rows in the block

	dead     []kafka.Outgoing
	deadSize int64
	deadSent int       // of dead, how many Kafka has
	deadMore int       // how many more letters there are, because Kafka takes some only in parts
	division *division // set once Kafka has refused a letter for its size

	resent      []delivery.Record // marked as resent: not looked up yet, and so not in the block
	resentSize  int64             // bytes of their values
	resentItems int

	stored map[signal.Key]struct{} // what the last look-up of the block found
	loaded *loaded                 // set while the block is bisected

	duplicates, copies int // items without a row, because their content or their id was there already
	diverted           int // items in dead letters
}

// kept is a record with rows in the block.
type kept struct {
	offset int64
	absent map[int]struct{} // indexes of its items that were left out because they are stored
}

// leaveOut notes that an item has no row.
func (k *kept) leaveOut(index int) {
	if k.absent == nil {
		k.absent = make(map[int]struct{})
	}
	k.absent[index] = struct{}{}
}

// memory is what the batch takes. A nil batch takes none.
func (b *batch) memory() int64 {
	if b == nil {
		return 0
	}
	return int64(b.block.Bytes()) + b.deadSize + b.resentSize
}

func (b *batch) full(cfg *Config, maxBytes int64) bool {
	return b.block.Rows()+b.resentItems >= cfg.MaxBatchRows || b.memory() >= maxBytes
}

// causeBytes bounds the cause in a dead letter: it may quote a value, which the
// letter has anyway.
const causeBytes = 1000

// divert adds a dead letter, which keeps the time by which its items were judged.
func (b *batch) divert(claim Claim, r *delivery.Record, value []byte, cause string) {
	cause = fault.Shorten(cause, causeBytes)
	letter := delivery.DeadLetter{Cause: cause, Topic: claim.Topic(), Partition: claim.Partition(), Offset: r.Offset, Meta: r.Meta}
	letter.Meta.Received, _ = r.FirstReceipt()
	b.dead = append(b.dead, kafka.Outgoing{Value: append([]byte{}, value...), Headers: letter.Headers()})
	b.deadSize += int64(len(value))
}

// noteReceived keeps the oldest time of arrival.
func (b *batch) noteReceived(t time.Time) {
	if delivery.Believable(t) && (b.received.IsZero() || t.Before(b.received)) {
		b.received = t
	}
}

// slack is how much further than the gateway's the writer's window of accepted
// times reaches.
const slack = time.Hour

// accept returns the window in which the times of a record's items must lie:
// around its first receipt, or any time when that is unknown. It depends on the
// record alone, so that every writer judges it alike.
func (w *Writer) accept(r *delivery.Record) signal.Window {
	received, ok := r.FirstReceipt()
	if !ok {
		return signal.Anytime
	}
	return signal.WindowAt(received, w.opts.AcceptPast+slack, w.opts.AcceptFuture+slack)
}

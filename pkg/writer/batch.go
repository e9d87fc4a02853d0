package writer

import (
	"time"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// batch is the range of records that is being gathered, decoded.
type batch struct {
	from, to int64              // offsets [from, to)
	first    int64              // timestamp of the record at from, in milliseconds; 0 when it cannot be read
	apart    bool               // ClickHouse refused the block, and pieces of it may be stored
	lookUp   bool               // every record is looked up as if it were resent
	split    map[piece]struct{} // pieces that were refused
	doubtful bool               // whether a piece is stored is not known
	begun    time.Time
	received time.Time // in Kafka, of the oldest record that says so
	block    Block
	kept     []kept // the records that have rows in the block
	dead     []kafka.Outgoing
	deadSize int64
	deadSent int              // of dead, how many Kafka has one by one
	keys     map[Key]struct{} // of all rows, once a resent record is among them

	duplicates, resent int // items that have no row because they were there already
	refusedRows        int // rows of the block that ClickHouse refused
}

// kept is a record with rows in the block.
type kept struct {
	offset int64
	absent map[int]struct{} // indexes of its items that were left out as resent
}

func newBatch(block Block, from int64) *batch {
	return &batch{from: from, to: from, begun: time.Now(), block: block}
}

// memory is what the batch takes. A nil batch takes none.
func (b *batch) memory() int64 {
	if b == nil {
		return 0
	}
	return int64(b.block.Bytes()) + b.deadSize
}

func (b *batch) full(cfg *Config, maxBytes int64) bool {
	return b.block.Rows() >= cfg.MaxBatchRows || b.memory() >= maxBytes
}

// old reports whether the batch has waited long enough.
func (b *batch) old(cfg *Config) bool { return time.Since(b.begun) >= cfg.MaxWait }

// divert adds a dead letter, which keeps the time by which its items were judged.
func (b *batch) divert(claim Claim, r *record.Record, value []byte, cause string) {
	letter := record.DeadLetter{Cause: cause, Topic: claim.Topic(), Partition: claim.Partition(), Offset: r.Offset, Meta: r.Meta}
	letter.Meta.Received, _ = r.FirstReceipt()
	b.dead = append(b.dead, kafka.Outgoing{Value: append([]byte{}, value...), Headers: letter.Headers()})
	b.deadSize += int64(len(value))
}

// noteReceived keeps the oldest time of arrival.
func (b *batch) noteReceived(t time.Time) {
	if record.Believable(t) && (b.received.IsZero() || t.Before(b.received)) {
		b.received = t
	}
}

// slack is how much further than the gateway's the writer's window of accepted times reaches.
const slack = time.Hour

// accepted is the window in which the items of a record must lie: around its first receipt, or any
// time when that is not known. It depends on the record alone, so that every writer judges it alike.
func (w *Writer) accepted(r *record.Record) otlp.Window {
	received, ok := r.FirstReceipt()
	if !ok {
		return otlp.Anytime
	}
	return otlp.WindowAt(received, w.opts.AcceptPast+slack, w.opts.AcceptFuture+slack)
}

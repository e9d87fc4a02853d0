package writer

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// partition follows one partition: its machine decides, and the methods here and
// in the files after this one do what it decides, in the order of a record's way:
// resume.go, fetch.go, take.go, store.go, letters.go. A partition belongs to the
// goroutine of Handle.
type partition struct {
	*Writer
	claim   Claim
	log     *slog.Logger
	machine *delivery.Machine
	window  *delivery.Window

	shard  int    // where the rows go; tokens are known only there
	share  *share // of the memory, for that shard
	batch  *batch // nil while nothing is gathered
	held   int64  // of share.memory, for batch
	bulk   bool   // has one of share.slots instead
	behind bool   // the log has more than was fetched
	logEnd int64  // as far as the last fetch knew

	tick     time.Time // when the batch is to be stored
	expected time.Time // the tick for which others wait for rows of it; the gatherer's
	offered  bool      // the batch was sent before
	alone    bool      // the batch must not be sent with others
	grown    int64     // memory that fetches took lately

	fetched   atomic.Bool  // since watchLag looked
	committed atomic.Int64 // offset; negative until it is known; for watchLag
	shown     sync.Mutex   // held while the metrics of the position change
	place     int          // shard under which they are shown
}

func newPartition(w *Writer, claim Claim) *partition {
	p := &partition{Writer: w, claim: claim, log: w.log.With(slog.String("topic", claim.Topic()), slog.Int("partition", claim.Partition()))}
	followed := delivery.Partition{
		Topic: claim.Topic(), Number: claim.Partition(), Shards: w.store.Shards(), Unique: rand.Text,
	}
	if id := claim.TopicID(); id != (kafka.TopicID{}) {
		followed.TopicID = id.String()
	}
	p.machine = delivery.NewMachine(followed)
	p.committed.Store(-1)
	p.setShard(p.machine.Shard())
	p.grown = p.share.fetchMemory() // nothing is known yet
	return p
}

// setShard makes the rows go to a shard. There must be no batch.
func (p *partition) setShard(shard int) {
	if p.share != nil {
		p.share.gatherer.forget(p)
	}
	p.shard, p.share = shard, p.shareOf(shard)
	p.shown.Lock()
	defer p.shown.Unlock()
	if p.place != shard {
		p.place = shard
		p.metrics.forget(p.claim.Partition()) // the former shard's
	}
}

// close gives back what the partition holds. A batch that was not planned is
// simply forgotten: its records are read again by the next owner.
func (p *partition) close() {
	p.dropBatch()
	p.failing.succeeded(p.claim.Partition(), "")
	p.metrics.forget(p.claim.Partition())
}

// run does what the machine decides until the machine gives the partition up.
// When ctx ends, the action under way may still succeed within the grace period.
func (p *partition) run(ctx context.Context) {
	graceful, cancel := withGrace(ctx, min(p.opts.Grace, p.claim.Grace()))
	defer cancel()
	notes, action := p.machine.Start(p.moment(ctx))
	for {
		for _, note := range notes {
			p.heed(note)
		}
		if stop, ok := action.(delivery.Stop); ok {
			if stop.Err != nil {
				p.log.Warn("giving up the partition", slog.Any("error", stop.Err))
			}
			return
		}
		event := p.perform(ctx, graceful, action)
		if operation := delivery.Operation(action); event.Outcome == delivery.OK && operation != "" {
			p.working.succeeded(p.operation(operation))
			p.failing.succeeded(p.claim.Partition(), p.operation(operation))
		}
		notes, action = p.machine.Step(p.moment(ctx), event)
	}
}

// moment is what the machine needs to know of the present.
func (p *partition) moment(ctx context.Context) delivery.Moment {
	return delivery.Moment{
		Time: time.Now(), Stopping: ctx.Err() != nil,
		Accepted: p.share.accepted.Load(), ViewsFail: p.share.viewsFail.Load(),
	}
}

// withGrace returns a context that ends some time after ctx does.
func withGrace(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	graceful, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		_ = retry.Sleep(graceful, grace)
		cancel()
	})
	return graceful, func() { stop(); cancel() }
}

// perform does one action and returns its outcome.
func (p *partition) perform(ctx, graceful context.Context, action delivery.Action) (e delivery.Event) {
	var err error
	switch a := action.(type) {
	case delivery.ReadPosition:
		var at kafka.Position
		at, err = p.claim.Position(ctx)
		e.Offset, e.Epoch, e.Metadata = at.Offset, at.LeaderEpoch, at.Metadata
		if err == nil {
			p.committed.Store(at.Offset) // the lag counts also while a takeover waits for ClickHouse
		}
	case delivery.ReadBounds:
		e.Start, e.End, err = p.claim.Bounds(ctx)
		if err == nil {
			p.committed.CompareAndSwap(-1, e.Start) // nothing was ever committed
		}
	case delivery.ReadEpochEnd:
		e.End, err = p.claim.EpochEnd(ctx, a.Epoch)
	case delivery.ReadTime:
		e.First, err = p.readTime(ctx, a.Offset)
	case delivery.RebuildWindow:
		e.Epoch, err = p.rebuildWindow(ctx, a.Start, a.From)
	case delivery.TakeRange:
		e.Epoch, err = p.takeRange(ctx, a.From, a.To)
	case delivery.Fetch:
		err = p.fetch(ctx, a.Offset, &e)
	case delivery.TakeResent:
		err = p.takeResent(ctx)
	case delivery.CommitOffset:
		err = p.commit(graceful, a)
	case delivery.Settle:
		err = p.store.Settle(ctx, p.shard, p.query())
	case delivery.LookUp:
		e.Missing, err = p.lookUp(ctx, a.Rows, a.AnyShard)
	case delivery.KeepMissing:
		err = p.keepMissing(ctx)
	case delivery.Load:
		e.Rows, err = p.loadRows(ctx)
	case delivery.Insert:
		e.Again, err = p.insert(ctx, graceful, a.Token, a.Rows)
	case delivery.ProduceLetters:
		err = p.produceLetters(graceful)
	case delivery.Wait:
		err = p.wait(ctx, a)
	}
	e.Outcome, e.Err, e.Batch = outcomeOf(err), err, p.holds()
	return e
}

// holds tells the machine what the batch holds.
func (p *partition) holds() delivery.Batch {
	b := p.batch
	if b == nil {
		return delivery.Batch{}
	}
	return delivery.Batch{Rows: b.block.Rows(), Resent: len(b.resent), Letters: len(b.dead), Full: p.full()}
}

// outcomeOf tells the machine what an error means.
func outcomeOf(err error) delivery.Outcome {
	var corrupt *kafka.CorruptError
	switch {
	case err == nil:
		return delivery.OK
	case errors.Is(err, kafka.ErrTopicChanged):
		return delivery.TopicChanged
	case fault.ClassOf(err) == fault.Fenced:
		return delivery.Fenced
	case errors.Is(err, errLogChanged), errors.Is(err, kafka.ErrTruncated):
		return delivery.LogChanged
	case errors.Is(err, kafka.ErrOffsetOutOfRange):
		return delivery.OutOfRange
	case errors.As(err, &corrupt):
		return delivery.Corrupt
	case errors.Is(err, clickhouse.ErrExpired):
		return delivery.Expired
	case fault.ClassOf(err) == fault.Rejected:
		return delivery.Refused
	case clickhouse.Divisible(err):
		return delivery.TooMuch
	case clickhouse.Answered(err):
		return delivery.Answered
	default:
		return delivery.Failed
	}
}

// heed does what a note says, logs it and counts it.
func (p *partition) heed(note delivery.Note) {
	switch n := note.(type) {
	case delivery.Drop:
		p.dropBatch()
	case delivery.SetShard:
		p.setShard(n.Shard)
	case delivery.Seek:
		p.claim.Seek(kafka.Position{Offset: n.Offset, LeaderEpoch: n.Epoch})
	case delivery.DivertCorrupt:
		p.divertCorrupt(n)
	case delivery.Divert:
		p.divertRows(n.Refused)
	case delivery.TakenOver:
		p.takenOver(n)
	case delivery.Doubted:
		p.metrics.doubts.WithLabelValues(string(n.Why)).Inc()
		p.log.Warn("the committed offset does not say what is stored; looking up what is in the log",
			slog.Any("why", n.Why), slog.Int64("offset", n.From), slog.Int64("log_start", n.Start), slog.Int64("log_end", n.End))
	case delivery.PlanDropped:
		p.log.Error("the planned range is of records that the log no longer has; going on without the plan",
			slog.Int64("from", n.From), slog.Int64("to", n.To), slog.Time("planned_first_time", time.UnixMilli(n.PlannedFirst)), slog.Time("first_time", time.UnixMilli(n.First)))
	case delivery.RangeResumed:
		p.metrics.resumed.Inc()
	case delivery.RecordsLost:
		p.metrics.lost.Add(float64(n.Start - n.From))
		p.log.Error("records are gone from the log before they were read: its retention is shorter than the outage",
			slog.Int64("offset", n.From), slog.Int64("log_start", n.Start), slog.Int64("log_end", n.End))
	case delivery.RowsFound:
		p.log.Info("rows are stored already", slog.String("range", n.Token), slog.Int("stored", n.Found), slog.Int("missing", n.Missing))
	case delivery.TokenWithoutRows:
		p.metrics.tokensWithoutRows.Inc()
	case delivery.ViewsWork:
		p.share.viewsFail.Store(false)
	case delivery.ViewFailed:
		// Until an insert succeeds at once, blocks of any partition are looked up after
		// their first failure: what is broken for good must not hold up each of them.
		p.share.viewsFail.Store(true)
		p.metrics.viewFailures.Inc()
		p.log.Error("the insert failed after its rows were stored: a view that depends on the table may lack them",
			slog.String("table", p.batch.block.Table()), slog.Int("rows", n.Found), slog.Any("error", n.Err))
	case delivery.Bisecting:
		p.log.Warn("ClickHouse refused the block, so its rows are tried", slog.Any("error", n.Err))
	case delivery.Stored:
		p.stored(n)
	}
}

// operation is what logs and metrics call an operation of the machine.
func (p *partition) operation(name string) string {
	if name == "look up" || name == "look up resent" {
		return name + " " + p.signal.Items
	}
	return name
}

// leastPause is how long a partition waits at least once its backoff has grown,
// however well others do: what fails for it alone must not be tried at their rate.
const leastPause = time.Second

// wait lets a time pass before an operation is tried again, or less when the
// same succeeds for another partition.
func (p *partition) wait(ctx context.Context, w delivery.Wait) error {
	p.share.gatherer.forget(p)
	operation := p.operation(w.Operation)
	p.metrics.retries.WithLabelValues(operation).Inc()
	cause, first := p.failing.add(p.claim.Partition(), operation, w.Err)
	least := min(w.Delay, leastPause)
	err := retry.Sleep(ctx, least)
	if first {
		log := p.log
		if partitions, several := p.failing.told(cause); several {
			log = p.Writer.log.With(slog.String("topic", p.claim.Topic()), slog.Int("partitions", partitions))
		}
		log.Warn("retrying after a failure", slog.String("operation", operation), slog.Any("error", w.Err), slog.Int("attempt", w.Attempt), slog.Duration("delay", w.Delay))
	}
	if err != nil {
		return err
	}
	return p.working.wait(ctx, operation, w.Delay-least)
}

package writer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// resume finds where the last owner stopped, and finishes what it had planned.
func (p *partition) resume(ctx context.Context) error {
	p.dropBatch()
	p.setShard(p.ownShard())
	committed, err := p.claim.Position(ctx)
	if err != nil {
		return err
	}
	start, end, err := p.claim.Bounds(ctx)
	if err != nil {
		return err
	}
	at, err := p.locate(ctx, committed, start, end)
	if err != nil {
		return err
	}
	p.epoch = -1
	if err := p.rebuildWindow(ctx, start, at.from); err != nil {
		return err
	}
	if at.epoch < 0 {
		at.epoch = p.epoch // of the last record that was read for the window
	}
	p.next, p.epoch, p.unsure, p.behind = max(at.from, start), at.epoch, at.unsure, end > at.from
	p.logEnd = end
	p.committed.Store(at.from)
	p.metrics.lag(p.claim.Partition(), end-at.from)
	p.log.Info("partition taken over", "offset", at.from, "planned_to", at.plan.To, "unsure_to", at.unsure,
		"behind", end-at.from, "window_records", p.window.Len())
	switch {
	case at.plan.To != 0:
		err = p.finish(ctx, at.from, start, at.plan)
	case committed.Offset < 0 && start == end:
		// From now on there is a position, before anything can be stored.
		err = p.commit(ctx, ctx, "commit", at.from, at.epoch, delivery.Plan{})
	}
	if err == nil && at.from < start {
		p.lost(at.from, start, end)
	}
	return err
}

// lost reports that retention has deleted [from, start) before anybody read it.
func (p *partition) lost(from, start, end int64) {
	p.log.Error("records are gone from the log before they were read: its retention is shorter than the outage",
		"offset", from, "log_start", start, "log_end", end)
	p.metrics.lost.Add(float64(start - from))
}

// place is where a partition is taken over.
type place struct {
	from   int64
	epoch  int32 // leader epoch of the last record before from; -1 when unknown
	unsure int64 // records before it may be stored
	plan   delivery.Plan
}

// Why a committed offset does not say what is stored.
const (
	doubtNone      = "none"        // nothing was committed, or it has expired
	doubtForeign   = "not ours"    // an operator or an older version committed it
	doubtTopic     = "other topic" // it is of a topic of the same name that was deleted
	doubtTruncated = "truncated"   // the log has lost records before it
)

// locate says where to go on, given what the group has committed and what the log holds.
//
// A committed offset proves that everything before it is stored only if one of our writers
// committed it, in this log, and the log has not lost records since. Where that does not
// hold, the records that are in the log now are unsure: they are looked up by their keys
// before they are inserted.
func (p *partition) locate(ctx context.Context, committed kafka.Position, start, end int64) (place, error) {
	said, ours, err := delivery.ParseCommit(committed.Offset, committed.Metadata)
	if err != nil {
		return place{}, err
	}
	at := place{from: committed.Offset, epoch: committed.LeaderEpoch, unsure: said.Unsure, plan: said.Plan}
	id := p.claim.TopicID()
	switch {
	case committed.Offset < 0:
		return p.doubt(place{from: start, epoch: -1, unsure: end}, doubtNone, start, end), nil
	case said.Topic != "" && id != (kafka.TopicID{}) && said.Topic != id.String():
		return p.doubt(place{from: start, epoch: -1, unsure: end}, doubtTopic, start, end), nil
	}
	if at, err = p.afterTruncation(ctx, at, start, end); err != nil {
		return place{}, err
	}
	if !ours {
		at.unsure = max(at.unsure, end)
		return p.doubt(at, doubtForeign, start, end), nil
	}
	if at.plan.To == 0 {
		return at, nil
	}
	same, err := p.sameLog(ctx, start, end, at.from, at.plan)
	if err != nil {
		return place{}, err
	}
	if !same || at.plan.To > end {
		// The range cannot be formed as it was planned. What is there of it is unsure.
		at.plan, at.unsure = delivery.Plan{}, max(at.unsure, at.plan.To)
	}
	return at, nil
}

// afterTruncation moves at back to where the log differs from what was read of it: its end
// was lost, and there may be other records by now.
func (p *partition) afterTruncation(ctx context.Context, at place, start, end int64) (place, error) {
	cut := int64(-1)
	if at.epoch >= 0 {
		var err error
		if cut, err = p.claim.EpochEnd(ctx, at.epoch); err != nil {
			return place{}, err
		}
	}
	switch {
	case cut >= 0 && cut < at.from:
		return p.doubt(place{from: max(cut, start), epoch: -1, unsure: end}, doubtTruncated, start, end), nil
	case at.from > end:
		// Where the log was cut is not known, so all of it may be new.
		return p.doubt(place{from: start, epoch: -1, unsure: max(end, at.from)}, doubtTruncated, start, end), nil
	default:
		return at, nil
	}
}

// doubt reports that the committed offset does not say what is stored of the records from at
// on, and makes the claim read them as they are. Where there are none nothing is reported.
func (p *partition) doubt(at place, why string, start, end int64) place {
	p.claim.Seek(kafka.Position{Offset: at.from, LeaderEpoch: at.epoch})
	if end > at.from || why == doubtTruncated {
		p.metrics.doubts.WithLabelValues(why).Inc()
		p.log.Warn("the committed offset does not say what is stored; looking up what is in the log",
			"why", why, "offset", at.from, "log_start", start, "log_end", end)
	}
	return at
}

// sameLog reports whether the log is still the one that the plan was made for:
// a topic may be created anew, and a log may lose its end and get another. What is
// planned has gone then, and the offsets of the range stand for other records.
func (p *partition) sameLog(ctx context.Context, start, end, from int64, planned delivery.Plan) (bool, error) {
	if planned.First == 0 || from < start || from >= end {
		return true, nil // nothing to compare
	}
	first := planned.First
	err := p.read(ctx, from, from+1, func(r *delivery.Record) {
		if r.Offset == from {
			first = r.Time.UnixMilli()
		}
	}, nil)
	if err != nil || first == planned.First {
		return true, err
	}
	p.log.Error("the planned range is of records that the log no longer has; going on without the plan",
		"from", from, "to", planned.To, "planned_time", time.UnixMilli(planned.First), "time", time.UnixMilli(first))
	return false, nil
}

// rebuildWindow reads the log before offset from as far back as the window reaches.
func (p *partition) rebuildWindow(ctx context.Context, start, from int64) error {
	p.window = delivery.NewWindow(delivery.WindowLimits{Age: p.cfg.DedupWindow, Bytes: p.cfg.DedupBytes})
	if from <= start {
		return nil
	}
	last, err := p.lastTime(ctx, start, from)
	if err != nil {
		return err
	}
	offset, err := p.claim.OffsetAt(ctx, last.Add(-p.cfg.DedupWindow))
	if err != nil {
		return err
	}
	// No more records than these fit into the window, twice for offsets without a record.
	offset = max(offset, from-2*(p.cfg.DedupBytes/delivery.MinRecordBytes+1))
	// The last owner looked no further back than from the end of the log at
	// that time, and neither do we: what is older is forgotten by its bytes.
	return p.read(ctx, max(start, offset), from, func(r *delivery.Record) { p.window.Duplicate(r) }, nil)
}

// lastTime returns the timestamp of the last record before offset end. There
// need not be one at the very offset before, where a transaction has left its mark. A
// timestamp in the future is its writer's mistake, and would leave the window empty:
// it counts as now.
func (p *partition) lastTime(ctx context.Context, start, end int64) (time.Time, error) {
	now := time.Now()
	for back := int64(1); end > start; back *= 8 {
		from := max(start, end-back)
		var last time.Time
		err := p.read(ctx, from, end, func(r *delivery.Record) { last = r.Time }, nil)
		switch {
		case err != nil:
			return now, err
		case last.After(now):
			return now, nil
		case !last.IsZero():
			return last, nil
		}
		end = from
	}
	return now, nil
}

// readWait bounds one fetch of a range that is known to be in the log. When it
// passes and nothing came, although the log goes on, there is nothing in the range. A
// new leader may not know for a moment how far the log goes: then it is an error.
const readWait = 5 * time.Second

// goneAfter is how many fetches in a row must bring nothing until records that the log should have
// are given up.
const goneAfter = 3

// read calls f for every record in [from, to), and corrupt, when given, for
// every batch that cannot be read. What was fetched before is no longer valid
// then. When the log does not reach that far any more, the error is errStartOver.
func (p *partition) read(ctx context.Context, from, to int64, f func(*delivery.Record), corrupt func(*kafka.CorruptError)) error {
	for empty := 0; from < to; {
		fetched, err := p.claim.Fetch(ctx, from, p.share.fetchBytes, readWait)
		if errors.Is(err, kafka.ErrOffsetOutOfRange) {
			return fmt.Errorf("read [%d, %d): %w: %w", from, to, err, errStartOver)
		}
		if bad, ok := asCorrupt(err); ok {
			if corrupt != nil {
				corrupt(bad)
			}
			from = bad.Next
			continue
		}
		if err != nil {
			return err
		}
		for i := range fetched.Records {
			if r := &fetched.Records[i]; r.Offset < to {
				f(r)
			}
		}
		if len(fetched.Records) > 0 {
			p.epoch = fetched.LeaderEpoch
		}
		if fetched.Next == from {
			if fetched.HighWatermark < to {
				return fmt.Errorf("nothing came from offset %d on, and the log seems to end at %d, before %d", from, fetched.HighWatermark, to)
			}
			if fetched.Throttled {
				continue // the broker holds us back, which says nothing of the log
			}
			if empty++; empty < goneAfter {
				continue
			}
			p.log.Error("records that were there are gone from the log", "from", from, "to", to, "high_watermark", fetched.HighWatermark)
			p.metrics.lost.Add(float64(to - from))
			return nil
		}
		from, empty = fetched.Next, 0
	}
	return nil
}

// skipLost returns the offset to go on from when retention has deleted what no
// writer has read yet. When Kafka itself has lost the end of the log, the
// error is errStartOver.
func (p *partition) skipLost(ctx context.Context, offset int64) (int64, error) {
	start, end, err := p.claim.Bounds(ctx)
	switch {
	case err != nil:
		return 0, err
	case offset > end:
		return 0, fmt.Errorf("fetch offset %d: the log ends at %d: %w", offset, end, errStartOver)
	case offset >= start:
		return 0, fmt.Errorf("fetch offset %d: refused as out of range, but the log has [%d, %d)", offset, start, end)
	}
	p.lost(offset, start, end)
	return start, nil
}

// finish forms the planned range that begins at from again, inserts and commits
// it. What lies before start has gone from the log. Which of its rows are stored is looked
// up, so that it does not matter how much of the range is left, or whether ClickHouse still
// knows its token.
func (p *partition) finish(ctx context.Context, from, start int64, planned delivery.Plan) error {
	if planned.Shard >= p.store.Shards() {
		return fmt.Errorf("the range [%d, %d) was planned for shard %d, and may be stored there, but ClickHouse has %d: bring that shard back to its cluster",
			from, planned.To, planned.Shard, p.store.Shards())
	}
	if planned.Shard >= 0 {
		p.setShard(planned.Shard)
	}
	// Also where nothing is left of the range: what the last owner sent may be stored yet, and
	// must be before copies of it are looked up.
	err := p.persist(ctx, "end inserts", func(ctx context.Context) error { return p.store.Settle(ctx, p.shard, p.query()) })
	if err != nil {
		return err
	}
	// The range may be as large as a batch can be, and so may those of all the
	// other partitions that are taken over now.
	if err := p.share.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	p.bulk = true
	left := min(max(from, start), planned.To)
	p.openBatch(from)
	p.batch.first, p.batch.unknown, p.batch.planned = planned.First, true, true
	if err := p.read(ctx, left, planned.To, p.take, p.divertCorrupt); err != nil {
		return err
	}
	p.batch.to = planned.To
	p.next = max(planned.To, start)
	p.metrics.resumed.Inc()
	if err := p.appendResent(ctx); err != nil {
		return err
	}
	if err := p.finishBatch(ctx); err != nil {
		return err
	}
	p.setShard(p.ownShard())
	return nil
}

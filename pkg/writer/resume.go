package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// takenOver notes where the partition goes on.
func (p *partition) takenOver(n delivery.TakenOver) {
	p.behind, p.logEnd = n.End > n.From, n.End
	p.committed.Store(n.From)
	p.showLag(n.End)
	p.log.Info("partition taken over", slog.Int64("offset", n.From), slog.Int64("planned_to", n.PlannedTo), slog.Int64("unsure_to", n.Unsure),
		slog.Int64("behind", n.End-n.From), slog.Int("window_records", p.window.Len()))
}

// readTime returns the timestamp of the record at offset, in milliseconds, or 0
// when there is none.
func (p *partition) readTime(ctx context.Context, offset int64) (first int64, err error) {
	_, err = p.read(ctx, offset, offset+1, func(r *delivery.Record) {
		if r.Offset == offset {
			first = r.Time.UnixMilli()
		}
	}, nil)
	return first, err
}

// rebuildWindow reads the log before offset from as far back as the window
// reaches. It returns the leader epoch of the last record.
func (p *partition) rebuildWindow(ctx context.Context, start, from int64) (epoch int32, err error) {
	limits := delivery.WindowLimits{Age: p.cfg.DedupWindow, Bytes: p.cfg.DedupBytes}
	p.window = delivery.NewWindow(limits)
	if from <= start {
		return -1, nil
	}
	last, err := p.lastTime(ctx, start, from)
	if err != nil {
		return -1, err
	}
	offset, err := p.claim.OffsetAt(ctx, last.Add(-p.cfg.DedupWindow))
	if err != nil {
		return -1, err
	}
	// The last owner looked no further back than from the end of the log at
	// that time, and neither do we: what is older is forgotten by its bytes.
	offset = max(start, offset, limits.Reach(from))
	return p.read(ctx, offset, from, func(r *delivery.Record) { p.window.Duplicate(r) }, nil)
}

// lastTime returns the timestamp of the last record before offset end. There
// need not be one at the very offset before, where a transaction has left its
// mark. A timestamp in the future is its writer's mistake, and would leave the
// window empty: it counts as now.
func (p *partition) lastTime(ctx context.Context, start, end int64) (time.Time, error) {
	now := time.Now()
	for back := int64(1); end > start; back *= 8 {
		from := max(start, end-back)
		var last time.Time
		_, err := p.read(ctx, from, end, func(r *delivery.Record) { last = r.Time }, nil)
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

// takeRange takes the records of a planned range into a new batch. It returns
// the leader epoch of the last one.
func (p *partition) takeRange(ctx context.Context, from, to int64) (epoch int32, err error) {
	// The range may be as large as a batch can be, and so may those of all the
	// other partitions that are taken over now.
	if err := p.share.slots.Acquire(ctx, 1); err != nil {
		return -1, err
	}
	p.bulk = true
	p.openBatch()
	return p.read(ctx, from, to, p.take, func(bad *kafka.CorruptError) {
		p.divertCorrupt(delivery.DivertCorrupt{Offset: bad.Offset, Next: bad.Next, Err: bad})
	})
}

// errLogChanged means that records that were read before are not in the log any
// more.
var errLogChanged = errors.New("the log is not as it was when the batch was read")

const (
	// readWait bounds one fetch of a range that is known to be in the log. When it
	// passes and nothing came, although the log goes on, there is nothing in the
	// range. A new leader may not know for a moment how far the log goes: then it
	// is an error.
	readWait = 5 * time.Second
	// goneAfter is how many fetches in a row must bring nothing until records that
	// the log should have are given up.
	goneAfter = 3
)

// read calls f for every record in [from, to), and corrupt, when given, for
// every batch that cannot be read. It returns the leader epoch of the last
// record, -1 when there is none. What was fetched before is no longer valid
// then. When the log does not reach that far any more, the error is
// errLogChanged.
func (p *partition) read(ctx context.Context, from, to int64, f func(*delivery.Record), corrupt func(*kafka.CorruptError)) (epoch int32, err error) {
	epoch = -1
	for empty := 0; from < to; {
		fetched, err := p.claim.Fetch(ctx, from, p.share.fetchBytes, readWait)
		if errors.Is(err, kafka.ErrOffsetOutOfRange) {
			return epoch, fmt.Errorf("read [%d, %d): %w: %w", from, to, err, errLogChanged)
		}
		var bad *kafka.CorruptError
		if errors.As(err, &bad) {
			if corrupt != nil {
				corrupt(bad)
			}
			from = bad.Next
			continue
		}
		if err != nil {
			return epoch, err
		}
		for i := range fetched.Records {
			if r := &fetched.Records[i]; r.Offset < to {
				f(r)
			}
		}
		if len(fetched.Records) > 0 {
			epoch = fetched.LeaderEpoch
		}
		if fetched.Next > from {
			from, empty = fetched.Next, 0
			continue
		}
		if fetched.HighWatermark < to {
			return epoch, fmt.Errorf("nothing came from offset %d on, and the log seems to end at %d, before %d", from, fetched.HighWatermark, to)
		}
		if fetched.Throttled {
			continue // the broker holds us back, which says nothing of the log
		}
		if empty++; empty >= goneAfter {
			p.log.Error("records that were there are gone from the log", slog.Int64("from", from), slog.Int64("to", to), slog.Int64("high_watermark", fetched.HighWatermark))
			p.metrics.lost.Add(float64(to - from))
			return epoch, nil
		}
	}
	return epoch, nil
}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// Claim is one partition, owned for one generation of the group. It belongs to its
// handler; only Lease and End may be called from other goroutines.
type Claim struct {
	group         *Group
	gen           generation
	partition     int
	fetcher       fetcher
	commitUnknown bool // a commit had no definite response
}

// Position is the committed position of a group in one partition.
type Position struct {
	Offset      int64  // of the next record to read; -1 for none
	LeaderEpoch int32  // of the last record before Offset; -1 when unknown
	Metadata    string // chosen by the committer
}

func newClaim(g *Group, gen generation, partition int) *Claim {
	f := newFetcher(g.client, g.topic, partition)
	f.id, f.fixed = gen.view.id, true
	return &Claim{group: g, gen: gen, partition: partition, fetcher: f}
}

// Topic returns the name of the topic.
func (c *Claim) Topic() string { return c.group.topic }

// TopicID returns the id of the topic that the claim reads. It never changes: when the
// topic is deleted or recreated, requests fail with ErrTopicChanged and the group starts
// a new generation.
func (c *Claim) TopicID() TopicID { return c.fetcher.id }

// Partition returns the number of the partition.
func (c *Claim) Partition() int { return c.partition }

// Grace returns how long the handler may continue after its context has ended. After that
// the coordinator may give the partition to another member and refuse commits.
func (c *Claim) Grace() time.Duration { return c.group.grace() }

// Lease returns a time before which no other member can own the partition, as far as is
// known now. Without news from the coordinator it lies one session timeout or one
// rebalance timeout, whichever is shorter, after the last answered request, because a
// rebalance may have begun unnoticed. Every answered request extends it and a rebalance
// shortens it. It ends when the handlers have returned. It has a monotonic clock reading,
// so time.Until stays correct if the process was stopped or the clock was set.
func (c *Claim) Lease() time.Time { return c.gen.lease.until() }

// Generation returns the generation's number, which grows with every rebalance of the
// group.
func (c *Claim) Generation() int { return c.gen.id }

// Position returns the group's last committed position, whoever committed it, and calls
// Seek with it. It fails with ErrTopicChanged like Fetch.
func (c *Claim) Position(ctx context.Context) (Position, error) {
	p, err := c.readPosition(ctx)
	if err != nil {
		return Position{}, fmt.Errorf("read committed offset of %s/%d: %w", c.Topic(), c.partition, err)
	}
	c.Seek(p)
	return p, nil
}

// Seek declares what a Fetch from p.Offset relies on: everything before it was read, up
// to a record of p.LeaderEpoch. If the log has lost the end of that epoch, the Fetch
// fails with ErrTruncated. An epoch of -1 accepts the log as it is. A Fetch that
// continues where the previous one ended needs no Seek.
func (c *Claim) Seek(p Position) { c.fetcher.seek(p) }

// CommitPosition commits p as the position of the group. It sends the commit once. After
// an error the caller may try again, unless the error
//   - has class fault.Fenced: the partition may belong to another member;
//   - is ErrTopicChanged: there is nothing left to commit;
//   - is ErrCommitUnknown, which also has class fault.Fenced: the commit got no
//     definite response and may still take effect, even after a later one. The
//     claim then commits nothing more. The handler must return; the member leaves
//     the group and rejoins it under a new id, so that the coordinator refuses
//     the old commit. In the next generation Position returns what was committed.
func (c *Claim) CommitPosition(ctx context.Context, p Position) error {
	err := c.commit(ctx, p)
	c.group.client.metrics.committed(c.group.id, err)
	if err != nil {
		return fmt.Errorf("commit offset %d of %s/%d: %w", p.Offset, c.Topic(), c.partition, err)
	}
	c.fetcher.sought = noMark // this claim has read what is now committed
	return nil
}

func (c *Claim) commit(ctx context.Context, p Position) error {
	if c.commitUnknown {
		return fault.As(fault.Fenced, fmt.Errorf("after another commit: %w", ErrCommitUnknown))
	}
	sent, err := c.sendCommit(ctx, p)
	switch {
	case err == nil:
		return nil
	case sent && !definite(err):
		c.commitUnknown = true
		c.group.commitUnknown.Store(true)
		c.group.client.metrics.unknownCommits.WithLabelValues(c.group.id).Inc()
		c.group.log.Warn("commit got no response, rejoining the group under a new id",
			slog.Int("partition", c.partition), slog.Int64("offset", p.Offset), slog.Any("error", err))
		return fault.As(fault.Fenced, fmt.Errorf("%w: %w", ErrCommitUnknown, err))
	case topicUnknown(err):
		return errors.Join(err, c.changed(ctx))
	default:
		return classifyGroup(err)
	}
}

// definite reports whether err is the coordinator's response.
func definite(err error) bool {
	var code kafkago.Error
	return errors.As(err, &code)
}

// changed returns ErrTopicChanged if the topic is no longer the claim's.
func (c *Claim) changed(ctx context.Context) error {
	return c.fetcher.locate(ctx)
}

// EpochEnd returns where the log of a leader epoch ends now: at the first record of a
// later epoch, or at the end of the log. Records at or after it that were read in that
// epoch are lost. It returns 0 if the log has no epoch that late, so that all of it may
// differ, and -1 if the brokers cannot tell.
func (c *Claim) EpochEnd(ctx context.Context, epoch int32) (int64, error) {
	return c.fetcher.epochEnd(ctx, epoch)
}

// Fetch returns the records of the partition from offset on: about maxBytes at most,
// compressed, but at least one batch if there is one. Records is empty if nothing arrives
// within maxWait. It is also empty if a broker quota delays the claim for longer than
// maxWait; then Batch.Throttled is true and the log was not read. Fetch does not return
// records of aborted or open transactions. Callers distinguish these errors:
//   - ErrOffsetOutOfRange: offset is outside the log; the end of the log is
//     inside;
//   - ErrTruncated: the log has lost records that were read before offset, see
//     Seek. The error repeats until the caller fetches elsewhere or calls Seek;
//   - ErrTopicChanged: the topic is not the one of TopicID;
//   - *CorruptError: a batch cannot be read.
//
// The records and their bytes are valid until the next Fetch of the Claim.
func (c *Claim) Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	return c.Collect(ctx, offset, 1, maxBytes, maxWait)
}

// Collect is Fetch for a caller that can wait: the broker answers once the partition has
// minBytes compressed, or after maxWait with what there is. That is one request where Fetch
// would need one for each batch that a producer sends.
func (c *Claim) Collect(ctx context.Context, offset int64, minBytes, maxBytes int, maxWait time.Duration) (Batch, error) {
	b, err := c.fetcher.fetch(ctx, offset, minBytes, maxBytes, maxWait)
	if errors.Is(err, ErrTruncated) {
		c.group.client.metrics.truncated.WithLabelValues(c.group.id).Inc()
	}
	return b, err
}

// Bounds returns the first offset of the log and the offset after the last readable
// record. It fails with ErrTopicChanged like Fetch.
func (c *Claim) Bounds(ctx context.Context) (start, end int64, err error) {
	start, end, err = c.group.client.Bounds(ctx, c.Topic(), c.partition)
	if err == nil || topicUnknown(err) {
		err = errors.Join(err, c.changed(ctx)) // brokers list offsets by topic name only
	}
	if err != nil {
		return 0, 0, err
	}
	return start, end, nil
}

// End returns the offset after the last readable record of whatever log has the topic's
// name now. Use it to measure lag only.
func (c *Claim) End(ctx context.Context) (int64, error) {
	return c.group.client.listOffset(ctx, c.Topic(), c.partition, kafkago.LastOffset)
}

// OffsetAt returns the first offset whose record is not older than t, or the end of the
// log. It fails with ErrTopicChanged like Fetch.
func (c *Claim) OffsetAt(ctx context.Context, t time.Time) (int64, error) {
	offset, err := c.group.client.OffsetAt(ctx, c.Topic(), c.partition, t)
	if err == nil || topicUnknown(err) {
		err = errors.Join(err, c.changed(ctx))
	}
	return offset, err
}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// Claim is one partition, owned for one generation of the group. It belongs to
// the handler that got it; only Lease and End may be called from elsewhere.
type Claim struct {
	group     *Group
	gen       generation
	partition int
	fetcher   fetcher
	doubtful  bool // a commit had no definite answer
}

// Position is what a group has committed for a partition.
type Position struct {
	Offset      int64  // of the record to go on with; -1 for none
	LeaderEpoch int32  // of the last record before Offset; -1 when unknown
	Metadata    string // the committer's own
}

func newClaim(g *Group, gen generation, partition int) *Claim {
	f := newFetcher(g.client, g.topic, partition)
	f.id, f.fixed = gen.view.id, true
	return &Claim{group: g, gen: gen, partition: partition, fetcher: f}
}

// Topic returns the name of the topic.
func (c *Claim) Topic() string { return c.group.topic }

// TopicID returns the id of the topic that the claim reads. It stays the same: when
// the topic is deleted or created anew, requests fail with ErrTopicChanged, and the group makes a
// new generation.
func (c *Claim) TopicID() TopicID { return c.fetcher.id }

// Partition returns the number of the partition.
func (c *Claim) Partition() int { return c.partition }

// Grace returns how long the handler may go on after its context has ended. Later, the
// brokers may have given the partition to another member, and refuse commits.
func (c *Claim) Grace() time.Duration { return c.group.grace() }

// Lease returns a moment before which nobody else can own the partition, as far as it is known
// now. Without news from the coordinator it ends when the session timeout or the rebalance
// timeout has passed since the last sign of life, whichever is shorter: a rebalance may have
// begun without our notice. Every sign of life that the coordinator answers moves it on; a
// rebalance moves it back. It is over when the handlers have returned. It carries a reading of
// the monotonic clock, so that time.Until also holds when the process was stopped or the clock
// was set.
func (c *Claim) Lease() time.Time { return c.gen.lease.until() }

// Generation returns the number of the generation. It grows with every
// rebalance of the group.
func (c *Claim) Generation() int { return c.gen.id }

// Position returns what the group has committed last, by whichever member. The claim
// remembers it as Seek would. ErrTopicChanged as for Fetch.
func (c *Claim) Position(ctx context.Context) (Position, error) {
	p, err := c.readPosition(ctx)
	if err != nil {
		return Position{}, fmt.Errorf("read committed offset of %s/%d: %w", c.Topic(), c.partition, err)
	}
	c.Seek(p)
	return p, nil
}

// Seek says what a Fetch from p.Offset rests on: everything before was read, up to a
// record of p.LeaderEpoch. When the log has lost the end of that epoch, the Fetch is ErrTruncated.
// An epoch of -1 takes the log as it is. A Fetch from where the Fetch before it ended
// needs no Seek: that is remembered, too.
func (c *Claim) Seek(p Position) { c.fetcher.seek(p) }

// CommitPosition makes p what the group goes on from, whoever owns the partition next. It is
// never sent twice. After an error the caller may try again, except when the error
//   - has class fault.Fenced: the partition may be somebody else's;
//   - is ErrTopicChanged: there is nothing to commit any more;
//   - is ErrCommitUnknown, which has class fault.Fenced, too: no definite answer came, and
//     the commit may be carried out at any time later, even after another one. So the claim commits
//     nothing more. The handler returns; the member then leaves the group and joins it
//     under a new id, and the brokers refuse what comes in the name of the old one. What was committed is
//     what Position says in the next generation.
func (c *Claim) CommitPosition(ctx context.Context, p Position) error {
	err := c.commit(ctx, p)
	c.group.client.metrics.committed(c.group.id, err)
	if err != nil {
		return fmt.Errorf("commit offset %d of %s/%d: %w", p.Offset, c.Topic(), c.partition, err)
	}
	c.fetcher.sought = noMark // what is committed now was read by this claim
	return nil
}

func (c *Claim) commit(ctx context.Context, p Position) error {
	if c.doubtful {
		return fault.As(fault.Fenced, fmt.Errorf("after another commit: %w", ErrCommitUnknown))
	}
	sent, err := c.sendCommit(ctx, p)
	switch {
	case err == nil:
		return nil
	case sent && !definite(err):
		c.doubtful = true
		c.group.doubtful.Store(true)
		c.group.client.metrics.unknownCommits.WithLabelValues(c.group.id).Inc()
		c.group.log.Warn("a commit had no answer, so this member joins the group under a new id",
			"partition", c.partition, "offset", p.Offset, "error", err)
		return fault.As(fault.Fenced, fmt.Errorf("%w: %w", ErrCommitUnknown, err))
	case topicUnknown(err):
		return errors.Join(err, c.changed(ctx))
	default:
		return classifyGroup(err)
	}
}

// definite reports whether err is the coordinator's own word.
func definite(err error) bool {
	var code kafkago.Error
	return errors.As(err, &code)
}

// changed returns ErrTopicChanged when the topic is not the claim's any more.
func (c *Claim) changed(ctx context.Context) error {
	return c.fetcher.locate(ctx)
}

// EpochEnd returns where the log of a leader epoch ends now: at the first record of a later
// epoch, or at the end of the log. A record at or after it that was read in that epoch is
// gone. It is 0 when the log knows no epoch as late, so that all of it may be another one, and -1
// when the brokers cannot tell.
func (c *Claim) EpochEnd(ctx context.Context, epoch int32) (int64, error) {
	return c.fetcher.epochEnd(ctx, epoch)
}

// Fetch returns what the partition has from offset on: at most about maxBytes
// compressed, but at least one batch of records when there is any. When nothing comes within
// maxWait, Records is empty. It is also empty while a quota of the brokers holds us back for
// longer than maxWait; then Batch.Throttled is true, and the answer says nothing of the log.
// Records of transactions that were aborted, or are open, are not returned. The errors to tell apart:
//   - ErrOffsetOutOfRange: offset is outside the log; the end of the log is not outside;
//   - ErrTruncated: the log does not contain any more what was read before offset, see Seek.
//     It stays so until the caller goes elsewhere or calls Seek;
//   - ErrTopicChanged: the topic is not the one of TopicID;
//   - *CorruptError: a batch that nobody can read.
//
// The records and their bytes are valid until the next Fetch of the Claim.
func (c *Claim) Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	b, err := c.fetcher.fetch(ctx, offset, maxBytes, maxWait)
	if errors.Is(err, ErrTruncated) {
		c.group.client.metrics.truncated.WithLabelValues(c.group.id).Inc()
	}
	return b, err
}

// Bounds returns the first offset of the log and the one after the last that can be read. ErrTopicChanged
// as for Fetch.
func (c *Claim) Bounds(ctx context.Context) (start, end int64, err error) {
	start, end, err = c.group.client.Bounds(ctx, c.Topic(), c.partition)
	if err == nil || topicUnknown(err) {
		err = errors.Join(err, c.changed(ctx)) // the brokers know offsets by the topic's name only
	}
	if err != nil {
		return 0, 0, err
	}
	return start, end, nil
}

// End returns the offset after the last record that can be read, of whatever log has the topic's
// name now. It is for watching how far a handler is behind.
func (c *Claim) End(ctx context.Context) (int64, error) {
	return c.group.client.listOffset(ctx, c.Topic(), c.partition, kafkago.LastOffset)
}

// OffsetAt returns the first offset whose record is not older than t, or the
// end of the log. ErrTopicChanged as for Fetch.
func (c *Claim) OffsetAt(ctx context.Context, t time.Time) (int64, error) {
	offset, err := c.group.client.OffsetAt(ctx, c.Topic(), c.partition, t)
	if err == nil || topicUnknown(err) {
		err = errors.Join(err, c.changed(ctx))
	}
	return offset, err
}

package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go/protocol/offsetcommit"
	"github.com/segmentio/kafka-go/protocol/offsetfetch"
)

// Claim is one partition, owned for one generation of the group. It belongs to
// the handler that got it.
type Claim struct {
	group     *Group
	gen       generation
	partition int
	fetcher   fetcher
}

func newClaim(g *Group, gen generation, partition int) *Claim {
	return &Claim{group: g, gen: gen, partition: partition, fetcher: fetcher{client: g.client}}
}

// Topic returns the name of the topic.
func (c *Claim) Topic() string { return c.group.topic }

// Partition returns the number of the partition.
func (c *Claim) Partition() int { return c.partition }

// Grace returns how long the handler may go on after its context has ended. Later, the
// brokers may have given the partition to another member, and refuse commits.
func (c *Claim) Grace() time.Duration {
	// The rest is for noticing the rebalance, and for joining again in time.
	return c.group.opts.RebalanceTimeout / 4 * 3
}

// Generation returns the number of the generation. It grows with every
// rebalance of the group.
func (c *Claim) Generation() int { return c.gen.id }

// Committed returns what the group has committed last, by whichever member:
// the offset to go on from and the metadata with it. The offset is -1 when there is none.
func (c *Claim) Committed(ctx context.Context) (offset int64, metadata string, err error) {
	answer, err := c.group.client.roundTrip(ctx, controlTimeout, &offsetfetch.Request{
		GroupID: c.group.id,
		Topics:  []offsetfetch.RequestTopic{{Name: c.Topic(), PartitionIndexes: []int32{int32(c.partition)}}},
	})
	if err != nil {
		return 0, "", fmt.Errorf("read committed offset of %s/%d: %w", c.Topic(), c.partition, err)
	}
	offset, metadata, err = c.committed(answer.(*offsetfetch.Response))
	if err != nil {
		return 0, "", fmt.Errorf("read committed offset of %s/%d: %w", c.Topic(), c.partition, err)
	}
	return offset, metadata, nil
}

func (c *Claim) committed(answer *offsetfetch.Response) (offset int64, metadata string, err error) {
	if err := codeError(answer.ErrorCode, ""); err != nil {
		return 0, "", err
	}
	if len(answer.Topics) != 1 || len(answer.Topics[0].Partitions) != 1 {
		return 0, "", errNoAnswer
	}
	p := answer.Topics[0].Partitions[0]
	if err := codeError(p.ErrorCode, ""); err != nil {
		return 0, "", err
	}
	return max(p.CommittedOffset, -1), p.Metadata, nil
}

// Commit makes offset the one to go on from, for whoever owns the partition
// next. It fails with class fault.Fenced when the partition may be somebody else's; after any
// other error it may have been done or not.
func (c *Claim) Commit(ctx context.Context, offset int64, metadata string) error {
	err := c.commit(ctx, offset, metadata)
	c.group.client.metrics.committed(c.group.id, err)
	if err != nil {
		return fmt.Errorf("commit offset %d of %s/%d: %w", offset, c.Topic(), c.partition, classifyGroup(err))
	}
	return nil
}

func (c *Claim) commit(ctx context.Context, offset int64, metadata string) error {
	answer, err := c.group.client.roundTrip(ctx, controlTimeout, &offsetcommit.Request{
		GroupID:         c.group.id,
		GenerationID:    int32(c.gen.id),
		MemberID:        c.gen.member,
		RetentionTimeMs: -1, // the brokers'
		Topics: []offsetcommit.RequestTopic{{
			Name: c.Topic(),
			Partitions: []offsetcommit.RequestPartition{{
				PartitionIndex: int32(c.partition), CommittedOffset: offset, CommittedLeaderEpoch: -1, CommittedMetadata: metadata,
			}},
		}},
	})
	if err != nil {
		return err
	}
	topics := answer.(*offsetcommit.Response).Topics
	if len(topics) != 1 || len(topics[0].Partitions) != 1 {
		return errNoAnswer
	}
	return codeError(topics[0].Partitions[0].ErrorCode, "")
}

// Fetch returns what the partition has from offset on: at most about maxBytes
// compressed, but at least one batch of records when there is any. When nothing comes within
// maxWait, Records is empty. An offset outside the log is ErrOffsetOutOfRange; the
// end of the log is not outside. A batch that nobody can read is a *CorruptError.
//
// The records and their bytes are valid until the next Fetch of the Claim.
func (c *Claim) Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	return c.fetcher.fetch(ctx, c.Topic(), c.partition, offset, maxBytes, maxWait)
}

// Bounds returns the first offset of the log and the one after its last.
func (c *Claim) Bounds(ctx context.Context) (start, end int64, err error) {
	return c.group.client.Bounds(ctx, c.Topic(), c.partition)
}

// OffsetAt returns the first offset whose record is not older than t, or the
// end of the log.
func (c *Claim) OffsetAt(ctx context.Context, t time.Time) (int64, error) {
	return c.group.client.OffsetAt(ctx, c.Topic(), c.partition, t)
}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// Bounds returns the first offset in the log of a partition and the offset after the last
// readable record, which ends before the first record of an open transaction.
func (c *Client) Bounds(ctx context.Context, topic string, partition int) (start, end int64, err error) {
	if start, err = c.listOffset(ctx, topic, partition, kafkago.FirstOffset); err != nil {
		return 0, 0, err
	}
	if end, err = c.listOffset(ctx, topic, partition, kafkago.LastOffset); err != nil {
		return 0, 0, err
	}
	return start, end, nil
}

// OffsetAt returns the first offset whose record is not older than t, or the end of the
// log if there is none.
func (c *Client) OffsetAt(ctx context.Context, topic string, partition int, t time.Time) (int64, error) {
	offset, err := c.listOffset(ctx, topic, partition, max(t.UnixMilli(), 0))
	if err != nil || offset >= 0 {
		return offset, err
	}
	return c.listOffset(ctx, topic, partition, kafkago.LastOffset)
}

// listOffset looks up one offset by time in milliseconds or by one of Kafka's special
// times. It returns -1 if no record is that new.
func (c *Client) listOffset(ctx context.Context, topic string, partition int, millis int64) (int64, error) {
	answer, err := c.roundTrip(ctx, controlTimeout, &listoffsets.Request{
		ReplicaID: -1, IsolationLevel: readCommitted,
		Topics: []listoffsets.RequestTopic{{
			Topic: topic,
			Partitions: []listoffsets.RequestPartition{{
				Partition: int32(partition), CurrentLeaderEpoch: -1, Timestamp: millis,
			}},
		}},
	})
	if err != nil {
		return 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	topics := answer.(*listoffsets.Response).Topics
	if len(topics) != 1 || len(topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, errNoAnswer)
	}
	p := topics[0].Partitions[0]
	if err := codeError(p.ErrorCode, ""); err != nil {
		c.refreshOnError(err)
		return 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	return p.Offset, nil
}

// refreshOnError refreshes leaders and connections if err suggests that a leader has
// moved or a broker is gone. It reports whether err does.
func (c *Client) refreshOnError(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false // canceled by us
	}
	var code kafkago.Error
	if errors.As(err, &code) {
		switch code {
		case kafkago.NotLeaderForPartition, kafkago.LeaderNotAvailable, kafkago.UnknownTopicOrPartition,
			kafkago.FencedLeaderEpoch, kafkago.UnknownLeaderEpoch, kafkago.KafkaStorageError, kafkago.NotController,
			kafkago.BrokerNotAvailable, kafkago.Unknown:
		default:
			return false
		}
	}
	c.refresh()
	return true
}

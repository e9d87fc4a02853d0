package kafka

import (
	"context"
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// epochEnd asks the leader of a partition where the log of a leader epoch ends: at the
// first record of a later epoch, or at the end of the log. It returns -1 if the leader
// cannot tell, and 0 if the epoch is later than the leader's own. at is the leadership
// the caller believes in; the leader rejects the request if it is wrong.
func (c *Client) epochEnd(ctx context.Context, topic string, partition int, at leadership, epoch int32) (int64, error) {
	var end int64
	var code int16
	request := &rawCall{
		key: protocol.OffsetForLeaderEpoch, versions: []int16{3}, flexibleFrom: 4,
		encode: func(b []byte, _ int16) []byte {
			b = appendInt32(b, -1) // replica: none, a consumer
			b = appendInt32(b, 1)  // topics
			b = appendString(b, topic)
			b = appendInt32(b, 1) // partitions
			b = appendInt32(b, int32(partition))
			b = appendInt32(b, at.epoch)
			return appendInt32(b, epoch)
		},
		decode: func(r *answerReader, _ int16) { end, code = readEpochEnd(r, topic, partition) },
	}
	err := c.do(ctx, request, &brokerCall{request, at.leader})
	if err == nil {
		err = codeError(code, "")
	}
	switch {
	case errors.Is(err, kafkago.UnsupportedVersion):
		return -1, nil
	case err == nil && epoch > at.epoch:
		return 0, nil // the leader confirmed its epoch, so its log has nothing of a later one
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the end of leader epoch %d of %s/%d: %w", epoch, topic, partition, err)
	}
	return max(end, -1), nil
}

func readEpochEnd(r *answerReader, topic string, partition int) (end int64, code int16) {
	r.int32() // throttled
	topics, name, partitions := r.int32(), r.text(false), r.int32()
	code = r.int16()
	if topics != 1 || partitions != 1 || name != topic || r.int32() != int32(partition) {
		r.b, r.bad = nil, true
	}
	r.int32() // the epoch that end belongs to, possibly an earlier one
	return r.int64(), code
}

package kafka

import (
	"context"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// topicState is a broker's description of a topic at one moment.
type topicState struct {
	id         TopicID
	partitions []leadership // indexed by partition number
	allowed    operations   // what the user may do with the topic
}

// leadership is the leader of a partition. The epoch grows with each new leader. Both are
// negative when unknown.
type leadership struct{ leader, epoch int32 }

func (s topicState) sameAs(o topicState) bool {
	return s.id == o.id && len(s.partitions) == len(o.partitions)
}

// changeTo names the change from s to now.
func (s topicState) changeTo(now topicState) string {
	switch {
	case len(now.partitions) == 0:
		return "deleted"
	case len(s.partitions) == 0:
		return "created"
	case s.id != now.id:
		return "recreated"
	case len(now.partitions) < len(s.partitions):
		return "shrunk" // only with brokers that have no topic ids
	default:
		return "grown"
	}
}

// mark encodes the state. Members send it when they join the group: when a member's mark
// changes, the coordinator starts a new generation.
func (s topicState) mark() []byte { return appendInt32(s.id[:], int32(len(s.partitions))) }

// describe asks any broker for a topic, bypassing the library's cache. It returns
// kafkago.UnknownTopicOrPartition for a topic that the broker does not know.
func (c *Client) describe(ctx context.Context, topic string) (topicState, error) {
	var state topicState
	code := int16(kafkago.UnknownTopicOrPartition)
	request := &rawCall{
		key: protocol.Metadata, versions: []int16{describeVersionID, describeVersionFlexible, describeVersion}, flexibleFrom: describeVersionFlexible,
		encode: func(b []byte, version int16) []byte { return appendDescribe(b, version, topic) },
		decode: func(r *answerReader, version int16) {
			state, code = readDescription(r, version, topic, code)
		},
	}
	if err := c.do(ctx, request, &clusterCall{request}); err != nil {
		return topicState{}, fmt.Errorf("ask kafka for topic %s: %w", topic, err)
	}
	if err := codeError(code, ""); err != nil {
		return topicState{}, fmt.Errorf("ask kafka for topic %s: %w", topic, err)
	}
	return state, nil
}

// Versions of the metadata request: the oldest that returns leader epochs and can omit
// authorized operations, the first with the flexible encoding, and the first that returns
// topic ids.
const (
	describeVersion         = 8
	describeVersionFlexible = 9
	describeVersionID       = 10
)

func appendDescribe(b []byte, version int16, topic string) []byte {
	if version < describeVersionFlexible {
		b = appendString(appendInt32(b, 1), topic)
	} else {
		b = appendCompactLength(b, 1)
		if version >= describeVersionID {
			b = append(b, make([]byte, len(TopicID{}))...) // zero id: look up by name
		}
		b = appendNoTags(appendCompactString(b, topic))
	}
	b = append(b, no)  // do not create the topic
	b = append(b, no)  // no cluster operations
	b = append(b, yes) // topic operations
	if version >= describeVersionFlexible {
		b = appendNoTags(b)
	}
	return b
}

// readDescription reads the state of topic from a response. It returns code if the
// response does not contain the topic.
func readDescription(r *answerReader, version int16, topic string, code int16) (topicState, int16) {
	var state topicState
	flexible := version >= describeVersionFlexible
	r.int32() // throttled
	for range r.length(flexible) {
		r.int32() // broker
		r.text(flexible)
		r.int32()
		r.text(flexible)
		r.tags(flexible)
	}
	r.text(flexible) // cluster
	r.int32()        // controller
	for range r.length(flexible) {
		found := r.int16()
		if name := r.text(flexible); name == topic {
			code = found
		}
		if version >= describeVersionID {
			state.id = r.topicID()
		}
		r.take(1) // internal
		n := max(r.length(flexible), 0)
		state.partitions = make([]leadership, n)
		for i := range state.partitions {
			state.partitions[i] = leadership{leader: -1, epoch: -1}
		}
		for range n {
			failed := r.int16() != 0
			number := int(r.int32())
			lead := leadership{leader: r.int32(), epoch: r.int32()}
			if failed {
				lead.leader = -1
			}
			if number >= 0 && number < n {
				state.partitions[number] = lead
			}
			for range 3 { // replicas, in-sync replicas, offline replicas
				for range r.length(flexible) {
					r.int32()
				}
			}
			r.tags(flexible)
		}
		state.allowed = operations(r.int32())
		r.tags(flexible)
	}
	r.int32() // operations
	r.tags(flexible)
	return state, code
}

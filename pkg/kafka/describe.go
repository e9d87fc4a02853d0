package kafka

import (
	"context"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// topicState is what a broker says of a topic at one moment.
type topicState struct {
	id         TopicID
	partitions []leadership // by number
}

// leadership says who leads a partition. The epoch grows with each new leader; both are
// negative when they are not known.
type leadership struct{ leader, epoch int32 }

func (s topicState) sameAs(o topicState) bool {
	return s.id == o.id && len(s.partitions) == len(o.partitions)
}

// changeTo is the word for what became of the topic.
func (s topicState) changeTo(now topicState) string {
	switch {
	case len(now.partitions) == 0:
		return "deleted"
	case len(s.partitions) == 0:
		return "created"
	case s.id != now.id:
		return "recreated"
	case len(now.partitions) < len(s.partitions):
		return "shrunk" // by brokers without ids
	default:
		return "grown"
	}
}

// mark tells one state of a topic from another. Members of a group say it when they join:
// the coordinator makes a new generation when a member says something else than before.
func (s topicState) mark() []byte { return appendInt32(s.id[:], int32(len(s.partitions))) }

// describe asks any broker for a topic, past the library's cache. A topic that the broker
// does not know is kafkago.UnknownTopicOrPartition.
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

// Versions of the request for metadata: the oldest that says leader epochs and can be told not to
// list operations, the same encoded as newer requests are, and the first that says ids.
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
			b = append(b, make([]byte, len(TopicID{}))...) // by name
		}
		b = appendNoTags(appendCompactString(b, topic))
	}
	b = append(b, no) // do not create it
	b = append(b, no) // no operations of the cluster
	b = append(b, no) // and none of the topic
	if version >= describeVersionFlexible {
		b = appendNoTags(b)
	}
	return b
}

// readDescription reads an answer that should speak of topic; code is for one that does not.
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
			for range 3 { // replicas, those in sync, those offline
				for range r.length(flexible) {
					r.int32()
				}
			}
			r.tags(flexible)
		}
		r.int32() // operations
		r.tags(flexible)
	}
	r.int32() // operations
	r.tags(flexible)
	return state, code
}

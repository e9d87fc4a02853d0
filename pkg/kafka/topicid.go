package kafka

import (
	"encoding/base64"
	"fmt"
)

// TopicID identifies a topic, even among topics of the same name that were deleted and
// recreated. It is zero with brokers older than Kafka 2.8, which have no topic ids.
type TopicID [16]byte

// String returns id as Kafka's tools print it.
func (id TopicID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// IsZero reports whether the broker gave no id.
func (id TopicID) IsZero() bool { return id == TopicID{} }

// ParseTopicID parses the result of TopicID.String.
func ParseTopicID(s string) (TopicID, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil && len(b) != len(TopicID{}) {
		err = fmt.Errorf("%d bytes, not %d", len(b), len(TopicID{}))
	}
	if err != nil {
		return TopicID{}, fmt.Errorf("topic id %q: %w", s, err)
	}
	return TopicID(b), nil
}

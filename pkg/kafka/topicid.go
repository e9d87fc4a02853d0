package kafka

import (
	"encoding/base64"
	"fmt"
)

// TopicID tells a topic from every other one, also from one of the same name that was
// created after it was deleted. The zero value means that the brokers have none, which
// are those older than Kafka 2.8.
type TopicID [16]byte

// String returns id as Kafka's tools print it.
func (id TopicID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// IsZero reports whether the brokers gave no id.
func (id TopicID) IsZero() bool { return id == TopicID{} }

// ParseTopicID reads what TopicID.String returns.
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

package schema

import "time"

// TopicPolicy is what MetaFlow requires of a Kafka topic regardless of the configuration.
// A zero field leaves the choice to the configuration.
type TopicPolicy struct {
	// Partitions is 1 where the order of all records matters.
	Partitions int
	// MinRetention is the minimum retention, even if the configured one is shorter.
	MinRetention time.Duration
	// Compacted keeps the last record of every key.
	Compacted bool
	// Forever keeps every record.
	Forever bool
}

// BatchOverhead is how much larger than the largest record a topic's largest batch must
// be, for headers and the framing of the batch.
const BatchOverhead = 64 << 10

// deadLetterRetention gives operators a fortnight to inspect dead letters.
const deadLetterRetention = 14 * 24 * time.Hour

// PolicyOf returns the policy of one of the topics above.
func PolicyOf(topic string) TopicPolicy {
	switch topic {
	case TopicDeadLetter:
		return TopicPolicy{Partitions: 1, MinRetention: deadLetterRetention}
	case TopicControl:
		return TopicPolicy{Partitions: 1, Forever: true}
	case TopicResources:
		return TopicPolicy{Partitions: 1, Compacted: true}
	default:
		return TopicPolicy{}
	}
}

package schema

import "time"

// TopicPolicy is what MetaFlow needs of a Kafka topic, whatever an operator configures. A zero field
// leaves the choice to the configuration.
type TopicPolicy struct {
	// Partitions is 1 where the order of all records matters.
	Partitions int
	// MinRetention is how long records stay, even when the configured retention is shorter.
	MinRetention time.Duration
	// Compacted keeps the last record of every key.
	Compacted bool
	// Forever keeps every record.
	Forever bool
}

// BatchOverhead is how much larger than the largest record a topic's largest batch must be: it
// leaves room for headers and for the framing of the batch.
const BatchOverhead = 64 << 10

// deadLetterRetention leaves operators a fortnight to look at dead letters.
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

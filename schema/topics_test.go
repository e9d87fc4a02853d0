package schema

import (
	"testing"
	"time"
)

// A policy cannot be changed on a topic that exists: these values are stored data.
func TestTopicPolicies(t *testing.T) {
	want := map[string]TopicPolicy{
		TopicSpans:      {},
		TopicFlows:      {},
		TopicDeadLetter: {Partitions: 1, MinRetention: 14 * 24 * time.Hour},
		TopicControl:    {Partitions: 1, Forever: true},
		TopicResources:  {Partitions: 1, Compacted: true},
	}
	for topic, policy := range want {
		if got := PolicyOf(topic); got != policy {
			t.Errorf("PolicyOf(%s) = %+v, want %+v", topic, got, policy)
		}
	}
}

package kafka_test

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

func TestTopicID(t *testing.T) {
	// kafka-topics.sh --describe prints this for an id of these bytes.
	id := kafka.TopicID{0xfb, 0xf0, 2: 1, 15: 0xff}
	const text = "-_ABAAAAAAAAAAAAAAAA_w"
	if got := id.String(); got != text {
		t.Errorf("String = %q, want %q", got, text)
	}
	if got, err := kafka.ParseTopicID(text); got != id || err != nil {
		t.Errorf("ParseTopicID = %v, %v", got, err)
	}
	for _, bad := range []string{"", "AA", text + "AA", "+/ABAAAAAAAAAAAAAAAA/w"} {
		if got, err := kafka.ParseTopicID(bad); err == nil {
			t.Errorf("ParseTopicID(%q) = %v, want an error", bad, got)
		}
	}
}

// Package kafkatest gives tests a Kafka of their own, like net/http/httptest.
package kafkatest

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
)

// Start runs the embedded broker until the test ends, on a free port unless o
// says another. The test may close it earlier.
func Start(t testing.TB, o broker.Options) *broker.Broker {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	b, err := broker.Start(o)
	if err != nil {
		t.Fatalf("start kafka: %v", err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close kafka: %v", err)
		}
	})
	return b
}

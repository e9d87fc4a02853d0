package kafka_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// Ready reports a failure that needs an operator for as long as it lasts.
func TestReadySaysWhatKafkaRefuses(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 3)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	if err := producer.Ready(t.Context()); err != nil {
		t.Errorf("Ready at first = %v", err)
	}
	refuse(cluster, kerr.TopicAuthorizationFailed, 2)
	for _, partition := range []int{1, 2} { // one after the other: both could share a request
		if err := producer.Produce(t.Context(), numbered(partition, "a", 1)); err == nil {
			t.Error("Produce without permission succeeds")
		}
	}
	err := producer.Ready(t.Context())
	if err == nil || !strings.Contains(err.Error(), "topic "+topic+": partitions 1 2: [29] Topic Authorization Failed") {
		t.Errorf("Ready = %v", err)
	}
	for _, partition := range []int{1, 2} {
		if err := producer.Produce(t.Context(), numbered(partition, "a", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := producer.Ready(t.Context()); err != nil {
		t.Errorf("Ready after a success = %v", err)
	}

	producer.Unstorable(0, &kafka.TooLargeError{Records: []int{0}, Cause: kafkago.MessageSizeTooLarge})
	if err := producer.Produce(t.Context(), numbered(0, "a", 1)); err != nil {
		t.Fatal(err)
	}
	if err := producer.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "larger than the topic accepts") {
		t.Errorf("Ready with a span that is too large for the topic = %v", err)
	}
}

// Ready ignores a short outage: leaders move and brokers restart.
func TestReadyIsPatient(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	refuse(cluster, kerr.NotEnoughReplicas, -1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- producer.Produce(ctx, numbered(0, "a", 1)) }()
	if err := producer.Ready(t.Context()); err != nil {
		t.Errorf("Ready within a second = %v", err)
	}
	wait.NoError(t, func() error {
		err := producer.Ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "partitions 0: [19] Not Enough Replicas") {
			return errors.New("Ready does not name the cause")
		}
		return nil
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("Produce without enough replicas succeeds")
	}
}

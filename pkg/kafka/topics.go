package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/createtopics"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Topic describes a topic for EnsureTopics.
type Topic struct {
	Name            string
	Partitions      int           // 0 means Config.Partitions
	Replication     int           // 0 means Config.Replication
	Retention       time.Duration // 0 means Config.Retention; ignored when Compacted or Forever
	Compacted       bool          // keep the last record of every key forever
	Forever         bool          // keep every record, whatever the brokers' defaults
	MinInSync       int           // replicas that must have a record before it is acknowledged; 0 means Config.MinInSync
	MaxMessageBytes int           // largest record batch the topic accepts; 0 uses the brokers' default
}

// With enoughReplicas one broker may be down while safeInSync others acknowledge, and the
// loss of any one broker loses no acknowledged record.
const (
	enoughReplicas = 3
	safeInSync     = 2
)

// EnsureTopics creates the missing topics. Several programs may call it at once. It does
// not change existing topics. It logs a different number of partitions, because the hash
// of trace ids then selects other partitions than configured.
func (c *Client) EnsureTopics(ctx context.Context, topics ...Topic) error {
	var errs []error
	for _, t := range topics {
		t = c.withDefaults(t)
		if err := c.ensureTopic(ctx, t); err != nil {
			errs = append(errs, fmt.Errorf("create topic %s: %w", t.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Client) withDefaults(t Topic) Topic {
	if t.Partitions == 0 {
		t.Partitions = c.cfg.Partitions
	}
	if t.Replication == 0 {
		t.Replication = c.cfg.Replication
	}
	if t.MinInSync == 0 {
		t.MinInSync = c.cfg.MinInSync
	}
	if t.MinInSync == 0 {
		t.MinInSync = 1
		if t.Replication >= enoughReplicas {
			t.MinInSync = safeInSync
		}
	}
	if t.Retention == 0 {
		t.Retention = c.cfg.Retention
	}
	return t
}

func (c *Client) ensureTopic(ctx context.Context, t Topic) error {
	have, err := c.describe(ctx, t.Name) // the library's cache may contain a deleted topic
	switch {
	case err == nil:
		c.comparePartitions(t, len(have.partitions))
		return nil
	case !errors.Is(err, kafkago.UnknownTopicOrPartition):
		return err
	}
	// The library returns only after its own cache has the topic.
	answer, err := c.roundTrip(ctx, controlTimeout, &createtopics.Request{
		Topics:    []createtopics.RequestTopic{t.request()},
		TimeoutMs: int32(controlTimeout.Milliseconds()),
	})
	if err != nil {
		return err
	}
	for _, created := range answer.(*createtopics.Response).Topics {
		err = errors.Join(err, codeError(created.ErrorCode, created.ErrorMessage))
	}
	switch {
	case err == nil:
		c.log.Info("topic created", slog.String("topic", t.Name), slog.Int("partitions", t.Partitions), slog.Int("replication", t.Replication))
		return nil
	case errors.Is(err, kafkago.TopicAlreadyExists):
		return c.awaitTopic(ctx, t)
	default:
		return err
	}
}

// awaitTopic waits until a topic that another program has just created is visible.
func (c *Client) awaitTopic(ctx context.Context, t Topic) error {
	return retry.Do(ctx, backoff, func(ctx context.Context) error {
		c.refresh()
		have, err := c.Partitions(ctx, t.Name)
		switch {
		case err == nil:
			c.comparePartitions(t, have)
		case !errors.Is(err, kafkago.UnknownTopicOrPartition):
			return retry.Stop(err)
		}
		return err
	}, nil)
}

func (c *Client) comparePartitions(t Topic, have int) {
	if have != t.Partitions {
		c.log.Warn("existing topic keeps a number of partitions that differs from the configured one",
			slog.String("topic", t.Name), slog.Int("partitions", have), slog.Int("configured", t.Partitions))
	}
}

func (t Topic) request() createtopics.RequestTopic {
	req := createtopics.RequestTopic{
		Name:              t.Name,
		NumPartitions:     int32(t.Partitions),
		ReplicationFactor: int16(t.Replication),
	}
	set := func(name, value string) {
		req.Configs = append(req.Configs, createtopics.RequestConfig{Name: name, Value: value})
	}
	switch {
	case t.Compacted:
		set("cleanup.policy", "compact")
	case t.Forever:
		set("cleanup.policy", "delete") // deletes only beyond limits, and there are none
		set("retention.ms", "-1")
		set("retention.bytes", "-1")
	default:
		set("retention.ms", strconv.FormatInt(max(t.Retention.Milliseconds(), -1), 10))
		if t.Retention < 0 { // no deletion by size either, whatever the brokers' default
			set("retention.bytes", "-1")
		}
	}
	if t.MinInSync > 0 {
		set("min.insync.replicas", strconv.Itoa(t.MinInSync))
	}
	if t.MaxMessageBytes > 0 {
		set("max.message.bytes", strconv.Itoa(t.MaxMessageBytes))
	}
	return req
}

// backoff grows to about a second. A leader election is faster than that.
var backoff = retry.Policy{First: 20 * time.Millisecond, Max: 1280 * time.Millisecond}

package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Difference is a topic setting that is not what the server needs.
type Difference struct {
	Topic, Key    string
	Found, Needed string
	Breaks        string // what does not hold with the setting found
}

// settingsInterval is the interval of WatchSettings. Topic settings change rarely.
const settingsInterval = 5 * time.Minute

// WatchSettings compares the topics with what they need, now and every settingsInterval,
// until ctx ends. It logs a difference when it appears and exports it as a metric.
// replicated means that the loss of one broker must not lose records, so two replicas
// have to acknowledge.
func (c *Client) WatchSettings(ctx context.Context, replicated bool, topics ...Topic) {
	said := make(map[string]string) // values already logged, by topic and key
	trouble := ""
	for {
		differences, err := c.Differences(ctx, replicated, topics...)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != trouble:
			trouble = err.Error()
			c.log.Warn("cannot compare topic settings", slog.Any("error", err))
		case err == nil:
			trouble = ""
			c.reportDifferences(differences, said)
		}
		if retry.Sleep(ctx, settingsInterval) != nil {
			return
		}
	}
}

func (c *Client) reportDifferences(differences []Difference, said map[string]string) {
	c.metrics.settings.Reset()
	for _, d := range differences {
		c.metrics.settings.WithLabelValues(d.Topic, d.Key).Set(1)
		name := d.Topic + " " + d.Key
		if said[name] != d.Found {
			said[name] = d.Found
			c.log.Warn("topic setting differs from what is needed",
				slog.String("topic", d.Topic), slog.String("key", d.Key), slog.String("found", d.Found), slog.String("needed", d.Needed), slog.String("breaks", d.Breaks))
		}
	}
}

const resourceTopic = 2 // the resource type of a topic in DescribeConfigs

// Differences compares the topics in Kafka with the settings EnsureTopics would give
// them. Topics that do not exist are skipped.
func (c *Client) Differences(ctx context.Context, replicated bool, topics ...Topic) ([]Difference, error) {
	req := &describeconfigs.Request{}
	for _, t := range topics {
		req.Resources = append(req.Resources, describeconfigs.RequestResource{ResourceType: resourceTopic, ResourceName: t.Name})
	}
	answer, err := c.roundTrip(ctx, controlTimeout, req)
	if err != nil {
		return nil, fmt.Errorf("ask kafka for the settings of topics: %w", err)
	}
	var errs []error
	settings := make(map[string]map[string]string)
	for _, r := range answer.(*describeconfigs.Response).Resources {
		err := codeError(r.ErrorCode, r.ErrorMessage)
		if errors.Is(err, kafkago.UnknownTopicOrPartition) {
			continue // not created yet; the topic check reports it
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("ask kafka for the settings of topic %s: %w", r.ResourceName, err))
			continue
		}
		found := make(map[string]string, len(r.ConfigEntries))
		for _, e := range r.ConfigEntries {
			found[e.ConfigName] = e.ConfigValue
		}
		settings[r.ResourceName] = found
	}
	var differences []Difference
	for _, t := range topics {
		if settings[t.Name] == nil {
			continue
		}
		replicas, err := c.replicas(ctx, t.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		differences = append(differences, c.withDefaults(t).differences(settings[t.Name], replicas, replicated)...)
	}
	return differences, errors.Join(errs...)
}

// replicas returns the smallest replica count among the topic's partitions.
func (c *Client) replicas(ctx context.Context, topic string) (int, error) {
	answer, err := c.roundTrip(ctx, controlTimeout, &metadata.Request{TopicNames: []string{topic}})
	if err != nil {
		return 0, fmt.Errorf("ask kafka for topic %s: %w", topic, err)
	}
	t := answer.(*metadata.Response).Topics[0]
	if err := codeError(t.ErrorCode, ""); err != nil {
		return 0, fmt.Errorf("ask kafka for topic %s: %w", topic, err)
	}
	fewest := 0
	for i, p := range t.Partitions {
		if i == 0 || len(p.ReplicaNodes) < fewest {
			fewest = len(p.ReplicaNodes)
		}
	}
	return fewest, nil
}

// differences compares t with the settings found. A setting that the broker does not
// report counts as correct.
func (t Topic) differences(found map[string]string, replicas int, replicated bool) []Difference {
	var all []Difference
	differs := func(key, value, needed, breaks string) {
		all = append(all, Difference{Topic: t.Name, Key: key, Found: value, Needed: needed, Breaks: breaks})
	}
	number := func(key string) (int64, bool) {
		n, err := strconv.ParseInt(found[key], 10, 64)
		return n, err == nil
	}
	if n, ok := number("max.message.bytes"); ok && n < int64(t.MaxMessageBytes) {
		differs("max.message.bytes", found["max.message.bytes"], "at least "+strconv.Itoa(t.MaxMessageBytes),
			"larger records are split and sent again, and a larger single span is not stored")
	}
	t.compareReplication(found, replicas, replicated, differs)
	policy := found["cleanup.policy"]
	switch {
	case policy == "":
	case t.Compacted && !strings.Contains(policy, "compact"):
		differs("cleanup.policy", policy, "compact", "records that every server needs are deleted over time")
	case !t.Compacted && policy != "delete":
		differs("cleanup.policy", policy, "delete", "kafka refuses records without a key, or drops some of them")
	}
	if n, ok := number("retention.ms"); ok && n >= 0 && !t.Compacted {
		switch {
		case t.Forever || t.Retention < 0:
			differs("retention.ms", found["retention.ms"], "-1", "records that are needed forever are deleted")
		case n < t.Retention.Milliseconds():
			differs("retention.ms", found["retention.ms"], "at least "+strconv.FormatInt(t.Retention.Milliseconds(), 10),
				"records are deleted before they are stored when the writers lag for longer")
		}
	}
	if kind := found["message.timestamp.type"]; kind != "" && kind != "CreateTime" {
		differs("message.timestamp.type", kind, "CreateTime", "the deduplication window follows the brokers' clocks")
	}
	return all
}

// compareReplication compares the settings that decide whether an acknowledged record
// survives the loss of a broker.
func (t Topic) compareReplication(found map[string]string, replicas int, replicated bool, differs func(key, value, needed, breaks string)) {
	inSync, err := strconv.Atoi(found["min.insync.replicas"])
	known := err == nil
	if known && inSync > replicas && replicas > 0 {
		differs("min.insync.replicas", found["min.insync.replicas"], "at most "+strconv.Itoa(replicas), "kafka stores nothing: the topic has fewer replicas")
	}
	if !replicated {
		return
	}
	if replicas == 1 {
		differs("replication", "1", "at least "+strconv.Itoa(enoughReplicas), "acknowledged records are lost with their only broker, or when it loses power")
	}
	if known && inSync < safeInSync {
		differs("min.insync.replicas", found["min.insync.replicas"], "at least "+strconv.Itoa(safeInSync),
			"acknowledged records may exist on one broker only, and are lost with it")
	}
	if found["unclean.leader.election.enable"] == "true" {
		differs("unclean.leader.election.enable", "true", "false", "acknowledged records are lost when a lagging replica becomes leader")
	}
}

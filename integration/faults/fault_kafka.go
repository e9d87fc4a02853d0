package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/schema"
)

// topicOf draws one of the two signals.
func topicOf(r *rand.Rand) (topic, group string) {
	if r.IntN(3) == 0 {
		return schema.TopicFlows, flowGroup
	}
	return schema.TopicSpans, spanGroup
}

// withoutWriters ends all servers in order, calls f, and starts them again.
func (s *site) withoutWriters(f func() error) error {
	for _, srv := range s.servers {
		srv.terminate(40 * time.Second)
	}
	err := f()
	for _, srv := range s.servers {
		err = errors.Join(err, srv.start())
	}
	return err
}

func planOffsetsDeleted(s *site, r *rand.Rand) (fault, bool) {
	_, group := topicOf(r)
	return fault{
		what: "all servers end, and the offsets of " + group + " are deleted", takes: serverNames(s),
		run: func(ctx context.Context) error {
			return s.withoutWriters(func() error { return s.kafka.deleteGroup(ctx, group) })
		},
	}, true
}

// planOffsetsReset moves the offsets of some partitions back, as an operator's tool does. Forward
// would lose what is passed over.
func planOffsetsReset(s *site, r *rand.Rand) (fault, bool) {
	topic, group := topicOf(r)
	back := 1 + r.Int64N(200)
	return fault{
		what: fmt.Sprintf("all servers end, and the offsets of %s are set back by %d", group, back), takes: serverNames(s),
		run: func(ctx context.Context) error {
			return s.withoutWriters(func() error {
				var offsets map[int32]int64
				err := retried(ctx, func(ctx context.Context) error {
					found, err := s.kafka.committed(ctx, group, topic)
					offsets = make(map[int32]int64)
					for p, c := range found {
						if c.Offset >= 0 {
							offsets[p] = max(0, c.Offset-back)
						}
					}
					return err
				})
				if err != nil || len(offsets) == 0 {
					return err
				}
				return s.kafka.reset(ctx, group, topic, offsets)
			})
		},
	}, true
}

// planTopicGrown adds partitions while no request is under way, and until every gateway knows them:
// docs/guarantees.md excludes copies of a request that comes under both numbers of partitions before its
// first copy is stored.
func planTopicGrown(s *site, r *rand.Rand) (fault, bool) {
	topic, _ := topicOf(r)
	const most = 12 // a partition takes memory of every program
	return fault{
		what: topic + " gets one more partition",
		run: func(ctx context.Context) error {
			speak := s.load.silence()
			defer speak()
			known := s.layouts(ctx, topic)
			grown := false
			if err := retried(ctx, func(ctx context.Context) error {
				resp, err := s.kafka.metadata(ctx, topic)
				if err != nil || len(resp.Topics[0].Partitions) >= most {
					return err
				}
				_, err = s.kafka.grow(ctx, topic, 1)
				grown = err == nil
				return err
			}); err != nil || !grown {
				return err
			}
			if err := retried(ctx, func(ctx context.Context) error {
				now := s.layouts(ctx, topic)
				for _, srv := range s.servers {
					if l, ok := now[srv.name]; strings.Contains(srv.roles, "gateway") && (!ok || l == known[srv.name]) {
						return fmt.Errorf("%s does not know of the partition that %s has got", srv.name, topic)
					}
				}
				return nil
			}); err != nil {
				return err
			}
			return retry.Sleep(ctx, 3*time.Second) // one that did not answer before asks Kafka every two seconds
		},
	}, true
}

// layout tells one layout of a topic that a gateway knew from another.
type layout struct{ started, changes float64 }

// layouts returns the layouts of a topic that servers know. Those that do not answer are left out.
func (s *site) layouts(ctx context.Context, topic string) map[string]layout {
	found := make(map[string]layout)
	for _, srv := range s.servers {
		_, text, err := get(ctx, "http://"+srv.http+"/metrics")
		if err != nil {
			continue
		}
		started, err := prom.Sum(text, "process_start_time_seconds", "")
		if err != nil {
			continue
		}
		changes, err := prom.Sum(text, "metaflow_kafka_produce_topic_changes_total", fmt.Sprintf("topic=%q", topic))
		if err != nil {
			continue
		}
		found[srv.name] = layout{started, changes}
	}
	return found
}

// planTopicAnew deletes a topic when all that is in it is stored, and creates it again at once, with as many
// partitions. With fewer of them, a gateway that does not know it yet would produce a part of a request and be
// told that another partition is unknown, which docs/guarantees.md excludes as for topics that grow.
func planTopicAnew(s *site, r *rand.Rand) (fault, bool) {
	topic, _ := topicOf(r)
	return fault{
		what: topic + " is deleted once it is drained, and made anew",
		run: func(ctx context.Context) error {
			speak := s.load.silence()
			defer speak()
			if err := s.drain(ctx, s.o.settle); err != nil {
				return err
			}
			var old kmsg.MetadataResponseTopic
			if err := retried(ctx, func(ctx context.Context) error {
				resp, err := s.kafka.metadata(ctx, topic)
				if err == nil {
					old = resp.Topics[0]
					err = kerr.ErrorForCode(old.ErrorCode)
				}
				return err
			}); err != nil {
				return err
			}
			if err := retried(ctx, func(ctx context.Context) error {
				err := s.kafka.deleteTopic(ctx, topic)
				if errors.Is(err, kerr.UnknownTopicOrPartition) {
					return nil // by an earlier attempt
				}
				return err
			}); err != nil {
				return err
			}
			// Kafka deletes in the background, and brokers that do not know it yet still tell of
			// the old topic.
			return retried(ctx, func(ctx context.Context) error {
				if err := s.kafka.tables.EnsureTopics(ctx, kafka.Topic{Name: topic, Partitions: len(old.Partitions)}); err != nil {
					return err
				}
				resp, err := s.kafka.metadata(ctx, topic)
				if err != nil {
					return err
				}
				made := resp.Topics[0]
				if made.ErrorCode == 0 && made.TopicID == old.TopicID {
					return fmt.Errorf("topic %s is still the old one", topic)
				}
				return kerr.ErrorForCode(made.ErrorCode)
			})
		},
	}, true
}

// planAnotherLeader kills the broker that leads a partition, waits for another leader, starts the
// broker and gives it its partitions back.
func planAnotherLeader(s *site, r *rand.Rand) (fault, bool) {
	topic, _ := topicOf(r)
	partition := int32(r.IntN(partitions))
	return fault{
		what: fmt.Sprintf("the leader of %s/%d is killed, another one elected, and the first one again", topic, partition), takes: brokerNames(s),
		run: func(ctx context.Context) error {
			var leader int
			if err := retried(ctx, func(ctx context.Context) (err error) {
				leader, err = s.kafka.leader(ctx, topic, partition)
				return err
			}); err != nil {
				return err
			}
			p := s.kafka.brokers[leader]
			p.kill()
			wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			err := retried(wait, func(ctx context.Context) error {
				now, err := s.kafka.leader(ctx, topic, partition)
				if err == nil && now == leader {
					err = fmt.Errorf("%s still leads %s/%d", p.name, topic, partition)
				}
				return err
			})
			if err := errors.Join(err, p.start()); err != nil {
				return err
			}
			if err := s.kafka.inSync(ctx); err != nil {
				return err
			}
			return s.kafka.electPreferred(ctx)
		},
	}, s.kafka.apache
}

// planLogCutOff kills a broker and takes the end of its last segments away, which it must get from its
// replicas. All of them are in sync before.
func planLogCutOff(s *site, r *rand.Rand) (fault, bool) {
	i, bytes := r.IntN(len(s.kafka.brokers)), 1+r.Int64N(200_000)
	topic, _ := topicOf(r)
	return fault{
		what: fmt.Sprintf("broker-%d is killed and loses up to %d bytes of each log of %s", i+1, bytes, topic), takes: brokerNames(s),
		run: func(ctx context.Context) error {
			if err := s.kafka.inSync(ctx); err != nil {
				return err
			}
			s.kafka.brokers[i].kill()
			var lost int64
			for p := range int32(partitions) {
				n, err := s.kafka.truncate(i, topic, p, bytes)
				if err != nil {
					return err
				}
				lost += n
			}
			s.event("broker-%d loses %d bytes of %s", i+1, lost, topic)
			_ = retry.Sleep(ctx, 2*time.Second)
			if err := s.kafka.brokers[i].start(); err != nil {
				return err
			}
			return s.kafka.inSync(ctx)
		},
	}, s.kafka.apache
}

// serverNames is for faults during which no writer may run.
func serverNames(s *site) []string {
	names := []string{extraServer}
	for _, srv := range s.servers {
		names = append(names, srv.name)
	}
	return names
}

// brokerNames is for faults during which no other broker may fail.
func brokerNames(s *site) (names []string) {
	for _, b := range s.kafka.brokers {
		names = append(names, b.name)
	}
	return names
}

// planSpoolFull takes all space of an agent's spool, while it cannot send.
func planSpoolFull(s *site, r *rand.Rand) (fault, bool) {
	i, d := r.IntN(len(s.agents)), between(r, 2*time.Second, 8*time.Second)
	a := s.agents[i]
	return fault{
		what: fmt.Sprintf("%s reaches no server, and the disk of its spool is full, for %s", a.name, d.Round(time.Millisecond)), takes: []string{a.name, "refusals"},
		run: func(ctx context.Context) error {
			links := s.between[i*gateways : (i+1)*gateways]
			for _, l := range links {
				l.setRefuse(true)
				l.cut()
			}
			_ = retry.Sleep(ctx, d/2) // the spool gets something
			free, err := fill(a.spool)
			if err == nil {
				_ = retry.Sleep(ctx, d)
				free()
			}
			for _, l := range links {
				l.setRefuse(false)
			}
			return err
		},
	}, s.o.mounts
}

// planBrokerFull takes all space of a broker's disk. Apache Kafka then halts, and starts again
// when there is space.
func planBrokerFull(s *site, r *rand.Rand) (fault, bool) {
	i, d := r.IntN(len(s.kafka.brokers)), between(r, 3*time.Second, 9*time.Second)
	p := s.kafka.brokers[i]
	return fault{
		what: fmt.Sprintf("the disk of %s is full for %s", p.name, d.Round(time.Millisecond)), takes: brokerNames(s),
		run: func(ctx context.Context) error {
			free, err := fill(s.kafka.dirs[i])
			if err != nil {
				return err
			}
			_ = retry.Sleep(ctx, d)
			free()
			return s.kafka.inSync(ctx)
		},
	}, s.o.mounts && s.kafka.apache
}

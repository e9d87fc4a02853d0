package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// Partitions that commit at the same moment share a request, and each gets its own answer.
func TestCommitsGoOutTogether(t *testing.T) {
	const partitions, refused = 24, 7
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, partitions)
	claims := make(chan *kafka.Claim, partitions)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		err := client.NewGroup("g", topic, memberOptions).Run(ctx, func(ctx context.Context, c *kafka.Claim) error {
			claims <- c
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	owned := make([]*kafka.Claim, partitions)
	for range owned {
		c := <-claims
		owned[c.Partition()] = c
	}

	var requests, answered atomic.Int64
	var refuse atomic.Bool
	first, release := make(chan struct{}), make(chan struct{})
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req := kreq.(*kmsg.OffsetCommitRequest)
		if requests.Add(1) == 1 {
			close(first)
			cluster.SleepControl(func() { <-release })
		}
		if !refuse.Load() {
			return nil, nil, false
		}
		res := req.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, rt := range req.Topics {
			st := kmsg.NewOffsetCommitResponseTopic()
			st.Topic, st.TopicID = rt.Topic, rt.TopicID
			for _, rp := range rt.Partitions {
				sp := kmsg.NewOffsetCommitResponseTopicPartition()
				sp.Partition = rp.Partition
				if rp.Partition == refused {
					sp.ErrorCode = int16(kafkago.IllegalGeneration)
				}
				st.Partitions = append(st.Partitions, sp)
				answered.Add(1)
			}
			res.Topics = append(res.Topics, st)
		}
		return res, nil, true
	})
	commitAll := func(offset int64) []error {
		var all sync.WaitGroup
		errs := make([]error, partitions)
		all.Go(func() { errs[0] = commit(t.Context(), owned[0], offset, "of 0") })
		if offset == 1 {
			<-first // the others come while it is under way
		}
		for i := 1; i < partitions; i++ {
			all.Go(func() { errs[i] = commit(t.Context(), owned[i], offset, fmt.Sprint("of ", i)) })
		}
		if offset == 1 {
			wait.Until(t, "the other commits are queued", func() bool { return kafka.QueuedCommits(owned[0]) == partitions-1 })
			close(release)
		}
		all.Wait()
		return errs
	}
	if err := errors.Join(commitAll(1)...); err != nil {
		t.Fatal(err)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests for %d commits, want 2", n, partitions)
	}
	for i, c := range owned {
		if offset, metadata, err := positionOf(t, c); err != nil || offset != 1 || metadata != fmt.Sprint("of ", i) {
			t.Errorf("partition %d: committed %d %q, %v", i, offset, metadata, err)
		}
	}

	refuse.Store(true)
	for i, err := range commitAll(2) {
		if i == refused != (fault.ClassOf(err) == fault.Fenced) || i != refused && err != nil {
			t.Errorf("partition %d: %v", i, err)
		}
	}
	if n := answered.Load(); n != partitions {
		t.Errorf("%d commits were sent, want %d", n, partitions)
	}
}

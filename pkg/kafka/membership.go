package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/leavegroup"
)

const (
	protocolType = "consumer"
	// protocolName is the assignment strategy. "range" is the ecosystem's name for
	// contiguous ranges, so tools display it correctly.
	protocolName = "range"
)

// requests returns a library client for the group requests whose bodies the library
// encodes.
func (g *Group) requests(timeout time.Duration) *kafkago.Client {
	return &kafkago.Client{Addr: g.client.addr, Transport: g.client.transport, Timeout: timeout}
}

// join joins the group and returns the new generation.
func (g *Group) join(ctx context.Context) (generation, error) {
	if err := g.look(ctx); err != nil {
		return generation{}, err
	}
	joined, err := g.joinGroup(ctx)
	if err != nil {
		return generation{}, fmt.Errorf("join group %s: %w", g.id, err)
	}
	gen := generation{id: joined.GenerationID, member: joined.MemberID}
	sync := &kafkago.SyncGroupRequest{
		GroupID: g.id, GenerationID: gen.id, MemberID: gen.member, ProtocolType: protocolType, ProtocolName: protocolName,
	}
	if joined.LeaderID == joined.MemberID {
		if err := g.look(ctx); err != nil { // the other members may have kept us waiting for long
			return generation{}, err
		}
		sync.Assignments = assign(g.topic, len(g.view.partitions), joined.Members)
	}
	answer, sent, err := g.syncGroup(ctx, sync)
	if err != nil {
		return generation{}, fmt.Errorf("sync group %s: %w", g.id, err)
	}
	gen.lease = newLease(g.opts, g.grace(), sent)
	gen.partitions = answer.Assignment.AssignedPartitions[g.topic]
	if last := slices.Max(append(gen.partitions, -1)); last >= len(g.view.partitions) {
		if err := g.look(ctx); err != nil { // the leader has seen a newer topic
			return generation{}, err
		}
		if last >= len(g.view.partitions) {
			return generation{}, fmt.Errorf("partition %d is assigned, but topic %s has only %d: %w",
				last, g.topic, len(g.view.partitions), kafkago.UnknownTopicOrPartition)
		}
	}
	gen.view = g.view
	return gen, nil
}

// syncGroup asks for the assigned partitions and returns when it sent the request. The
// coordinator responds when the group leader, which may be slow or dead, has assigned
// them. A repeated request gets the same response and keeps the session alive.
func (g *Group) syncGroup(ctx context.Context, req *kafkago.SyncGroupRequest) (answer *kafkago.SyncGroupResponse, sent time.Time, err error) {
	for range heartbeatTries {
		sent = time.Now()
		answer, err = g.requests(g.opts.SessionTimeout/heartbeatTries).SyncGroup(ctx, req)
		if err == nil {
			return answer, sent, answer.Error
		}
		if !timedOut(err) {
			break
		}
	}
	return nil, sent, err
}

// look refreshes the topic. Without a topic the group continues with no partitions.
func (g *Group) look(ctx context.Context) error {
	view, err := g.client.describe(ctx, g.topic)
	if err != nil && !errors.Is(err, kafkago.UnknownTopicOrPartition) {
		return err
	}
	g.see(view)
	return nil
}

// see stores the topic state and reports a change.
func (g *Group) see(view topicState) {
	before := g.view
	if g.seen && before.sameAs(view) {
		g.view = view
		return
	}
	g.view = view
	if !g.seen {
		g.seen = true
		if len(view.partitions) == 0 {
			g.log.Warn("topic does not exist, waiting for it")
		}
		return
	}
	change := before.changeTo(view)
	g.client.metrics.topicChanges.WithLabelValues(g.id, change).Inc()
	g.log.Warn("topic changed", slog.String("change", change), slog.Any("topic_id", view.id), slog.Int("partitions", len(view.partitions)),
		slog.Any("topic_id_before", before.id), slog.Int("partitions_before", len(before.partitions)))
}

// joinGroup asks for membership. The coordinator responds when all members have asked or
// the rebalance timeout has passed. If that takes long, the caller repeats the request
// with the assigned member id, because the connection may be dead.
func (g *Group) joinGroup(ctx context.Context) (*kafkago.JoinGroupResponse, error) {
	answer, err := g.requests(g.joinTimeout()).JoinGroup(ctx, &kafkago.JoinGroupRequest{
		GroupID:          g.id,
		SessionTimeout:   g.opts.SessionTimeout,
		RebalanceTimeout: g.opts.RebalanceTimeout,
		MemberID:         g.member,
		ProtocolType:     protocolType,
		Protocols: []kafkago.GroupProtocol{{
			Name: protocolName, Metadata: kafkago.GroupProtocolSubscription{
				Topics: []string{g.topic}, UserData: g.view.mark(),
			},
		}},
	})
	switch {
	case err != nil:
		return nil, err
	case errors.Is(answer.Error, kafkago.MemberIDRequired):
		g.member = answer.MemberID // assigned for the repeated request
		return nil, answer.Error
	case answer.Error != nil:
		return nil, answer.Error
	}
	g.member = answer.MemberID
	return answer, nil
}

// joinTimeout is how long to wait for a response before asking again. The first request
// is given up within the session that its response, which may be lost, has begun. The
// next one waits as long as the other members may need, because the embedded broker
// restarts their time with each request. A member without an id would become another
// member by asking again.
func (g *Group) joinTimeout() time.Duration {
	if g.member == "" || g.patient {
		return g.opts.RebalanceTimeout + joinSlack
	}
	return g.opts.SessionTimeout / 2
}

// assign gives each member a contiguous range of the partitions, ordered by member id.
func assign(topic string, partitions int, members []kafkago.JoinGroupResponseMember) []kafkago.SyncGroupRequestAssignment {
	slices.SortFunc(members, func(a, b kafkago.JoinGroupResponseMember) int { return strings.Compare(a.ID, b.ID) })
	var assignments []kafkago.SyncGroupRequestAssignment
	next := 0
	for i, m := range members {
		end := partitions * (i + 1) / len(members)
		var mine []int
		for ; next < end; next++ {
			mine = append(mine, next)
		}
		assignments = append(assignments, kafkago.SyncGroupRequestAssignment{
			MemberID:   m.ID,
			Assignment: kafkago.GroupProtocolAssignment{AssignedPartitions: map[string][]int{topic: mine}},
		})
	}
	return assignments
}

// leaveTimeout bounds the request to leave. Without it the other members wait for the
// session timeout.
const leaveTimeout = 2 * time.Second

// leave gives the partitions back at once. The response is ignored: it has no effect, and
// the library decodes it incorrectly.
func (g *Group) leave(ctx context.Context) {
	if g.member == "" {
		return
	}
	_, err := g.client.roundTrip(ctx, leaveTimeout, &leavegroup.Request{
		GroupID: g.id, Members: []leavegroup.RequestMember{{MemberID: g.member}},
	})
	if err != nil {
		g.log.Warn("cannot leave the group; its other members wait for the session timeout",
			slog.Any("error", err), slog.Duration("session_timeout", g.opts.SessionTimeout))
	}
	g.member = ""
}

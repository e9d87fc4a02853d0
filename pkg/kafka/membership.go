package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/leavegroup"
)

const (
	protocolType = "consumer"
	// protocolName is that of the assignment below. It is the ecosystem's name for
	// contiguous ranges, so that tools show it right.
	protocolName = "range"
)

// requests returns the library's view of the cluster, for the requests of the group
// protocol whose bodies it encodes.
func (g *Group) requests(timeout time.Duration) *kafkago.Client {
	return &kafkago.Client{Addr: g.client.addr, Transport: g.client.transport, Timeout: timeout}
}

// join takes part in the making of the next generation.
func (g *Group) join(ctx context.Context) (generation, error) {
	joined, err := g.joinGroup(ctx)
	if err != nil {
		return generation{}, fmt.Errorf("join group %s: %w", g.id, err)
	}
	gen := generation{id: joined.GenerationID, member: joined.MemberID, leader: joined.LeaderID == joined.MemberID}
	sync := &kafkago.SyncGroupRequest{
		GroupID: g.id, GenerationID: gen.id, MemberID: gen.member, ProtocolType: protocolType, ProtocolName: protocolName,
	}
	if gen.leader {
		if gen.known, err = g.client.Partitions(ctx, g.topic); err != nil {
			return generation{}, err
		}
		sync.Assignments = assign(g.topic, gen.known, joined.Members)
	}
	// The others wait for the leader, who may be slow or dead, as long as the
	// brokers let them.
	answer, err := g.requests(g.opts.RebalanceTimeout+joinSlack).SyncGroup(ctx, sync)
	if err == nil {
		err = answer.Error
	}
	if err != nil {
		return generation{}, fmt.Errorf("sync group %s: %w", g.id, err)
	}
	gen.partitions = answer.Assignment.AssignedPartitions[g.topic]
	return gen, nil
}

// joinGroup asks for membership. The coordinator answers when all members have
// asked, or the rebalance timeout has passed.
func (g *Group) joinGroup(ctx context.Context) (*kafkago.JoinGroupResponse, error) {
	answer, err := g.requests(g.opts.RebalanceTimeout+joinSlack).JoinGroup(ctx, &kafkago.JoinGroupRequest{
		GroupID:          g.id,
		SessionTimeout:   g.opts.SessionTimeout,
		RebalanceTimeout: g.opts.RebalanceTimeout,
		MemberID:         g.member,
		ProtocolType:     protocolType,
		Protocols: []kafkago.GroupProtocol{{
			Name: protocolName, Metadata: kafkago.GroupProtocolSubscription{Topics: []string{g.topic}},
		}},
	})
	switch {
	case err != nil:
		return nil, err
	case errors.Is(answer.Error, kafkago.MemberIDRequired):
		g.member = answer.MemberID // ours from now on; we have to ask again with it
		return nil, answer.Error
	case answer.Error != nil:
		return nil, answer.Error
	}
	g.member = answer.MemberID
	return answer, nil
}

// assign gives each member a range of the partitions, in the order of their ids.
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

// leaveTimeout bounds the goodbye. Without it the others wait for the session
// timeout, no more.
const leaveTimeout = 2 * time.Second

// leave gives the partitions back at once. What the broker says is of no
// consequence, and the library decodes it wrongly.
func (g *Group) leave(ctx context.Context) {
	if g.member == "" {
		return
	}
	_, err := g.client.roundTrip(ctx, leaveTimeout, &leavegroup.Request{
		GroupID: g.id, Members: []leavegroup.RequestMember{{MemberID: g.member}},
	})
	if err != nil {
		g.log.Warn("the group could not be left; its other members wait for the session timeout",
			"error", err, "session_timeout", g.opts.SessionTimeout)
	}
	g.member = ""
}

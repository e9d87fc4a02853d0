package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// GroupOptions are set by code.
type GroupOptions struct {
	// SessionTimeout is how long the coordinator waits for a heartbeat before it gives
	// the partitions to other members. 0 means 10 s: long enough for a garbage collection
	// pause or a slow network, short enough for a crashed writer.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long the handlers of this member may finish their work when
	// another member joins or leaves, and so how long the others may wait for it. 0 means
	// 20 s, or twice the session timeout if that is longer; three quarters of it are for
	// an INSERT in flight. If it is shorter than the session timeout, a silent member
	// loses its partitions before its session ends.
	RebalanceTimeout time.Duration
	// Heartbeat is the heartbeat interval, and so the time to notice a rebalance. 0 means
	// 1 s.
	Heartbeat time.Duration
}

const (
	defaultSessionTimeout   = 10 * time.Second
	defaultRebalanceTimeout = 20 * time.Second
	defaultHeartbeat        = time.Second
	// joinSlack is how long a broker may take beyond the rebalance timeout to respond.
	joinSlack = 10 * time.Second
	// watchInterval is how often each member checks for a changed topic. A check is one
	// small request to any broker.
	watchInterval = 2 * time.Second
	// lastingGeneration is the minimum duration of a generation after whose end the
	// member rejoins without a delay.
	lastingGeneration = 5 * time.Second
)

// Group is this program's membership of a consumer group that reads one topic.
//
// # How a partition changes hands
//
// Membership follows Kafka's classic protocol with segmentio/kafka-go's requests. The
// library's ConsumerGroup is not used: it stops the heartbeats as soon as a generation
// ends and then waits for the handlers, so a handler that takes longer than the session
// timeout can no longer commit its work. Here:
//
//  1. Another member joins, leaves or dies. The coordinator answers the next
//     heartbeat with REBALANCE_IN_PROGRESS.
//  2. The handlers' contexts end. Heartbeats continue, so the session stays
//     alive. The coordinator waits for this member for the rebalance timeout at
//     most, and until then accepts commits of the old generation. A handler
//     finishes what it must, commits and returns.
//  3. All handlers have returned, and the member joins again. The coordinator
//     assigns the partitions of the next generation when every member has
//     joined, so two members never work on a partition while both are in time.
//  4. The commits of a late handler fail with ILLEGAL_GENERATION or
//     UNKNOWN_MEMBER_ID, which is fault.Fenced. Its other writes must be harmless
//     by other means; the writer uses the deduplication token.
//
// The same holds when Run's context ends, except that the member leaves the group in step
// 3. When the coordinator is unreachable, the generation continues until its lease ends
// (see Claim.Lease), because only then may other members own the partitions.
//
// # When the topic changes
//
// Every member asks a broker for the topic every two seconds. When the topic has more or
// fewer partitions, is gone, or has another id because it was recreated, the member's
// generation ends and it joins again. Its join request includes the topic state it has
// seen; the changed state makes the coordinator start a new generation. While the topic
// does not exist, no member has partitions.
//
// # When a commit gets no response
//
// The commit may still take effect later if it carries the current generation and the id
// of a member. A member that rejoins under its old id may get the same generation. So the
// member leaves the group and rejoins it under a new id, which always starts a new
// generation: after that the coordinator refuses the old commit, and if it took effect
// earlier, Claim.Position returns it.
type Group struct {
	client *Client
	id     string
	topic  string
	opts   GroupOptions
	log    *slog.Logger
	watch  time.Duration
	member string     // member id assigned by the coordinator; empty before joining and after leaving
	view   topicState // the topic as last seen
	seen   bool       // view is set
	// patient makes the next join request wait for all other members.
	patient bool

	byID          atomic.Bool // the coordinator accepts commits by topic id
	commitUnknown atomic.Bool // a commit of the generation had no definite response
}

// grace implements Claim.Grace. The remaining quarter is for noticing the rebalance and
// joining again in time.
func (g *Group) grace() time.Duration { return g.opts.RebalanceTimeout / 4 * 3 }

// NewGroup returns a membership of group id. It joins in Run.
func (c *Client) NewGroup(id, topic string, opts GroupOptions) *Group {
	if opts.SessionTimeout <= 0 {
		opts.SessionTimeout = defaultSessionTimeout
	}
	if opts.RebalanceTimeout <= 0 {
		// The coordinator may reassign the partitions after either timeout. The session
		// timeout, which operators set, must be the effective one.
		opts.RebalanceTimeout = max(defaultRebalanceTimeout, 2*opts.SessionTimeout)
	}
	if opts.Heartbeat <= 0 {
		opts.Heartbeat = defaultHeartbeat
	}
	return &Group{
		client: c, id: id, topic: topic, opts: opts, watch: watchInterval,
		log: c.log.With(slog.String("group", id), slog.String("topic", topic)),
	}
}

// Handler processes one partition until ctx ends. After that it may still commit, with a
// context of its own, until it returns; Claim.Grace bounds the time. If it returns
// earlier it gives up the partition: the whole member rejoins and may get other
// partitions. An error ends Run.
type Handler func(ctx context.Context, c *Claim) error

// Run joins the group and calls handle in a goroutine for each assigned partition,
// generation after generation, until ctx ends or a handler fails. When it returns, all
// handlers have returned and the member has left the group. Run logs and retries Kafka
// errors. It must not be called concurrently.
func (g *Group) Run(ctx context.Context, handle Handler) error {
	defer g.leave(context.WithoutCancel(ctx))
	for attempt := 0; ctx.Err() == nil; attempt++ {
		gen, err := g.join(ctx)
		if err == nil {
			g.patient = false
			begun := time.Now()
			err = g.follow(ctx, gen, handle)
			if time.Since(begun) >= lastingGeneration {
				attempt = -1
			}
			var failed *handlerError
			if errors.As(err, &failed) {
				return failed.error
			}
		}
		if ctx.Err() != nil {
			break
		}
		g.forget(err)
		if g.commitUnknown.Swap(false) {
			// The commit may still be in flight. The coordinator refuses it once this
			// member has left; a rejoin under the old id might get the same generation.
			g.leave(ctx)
		}
		var changed *topicChangedError
		if err == nil || errors.Is(err, kafkago.RebalanceInProgress) || errors.Is(err, kafkago.MemberIDRequired) || errors.As(err, &changed) {
			attempt = -1
			continue
		}
		g.client.refreshOnError(err)
		g.patient = timedOut(err) && !g.patient
		if timedOut(err) { // the other members are slow, or a connection is dead
			g.log.Info("asking the consumer group again", slog.Any("error", err))
			continue
		}
		g.log.Warn("joining the consumer group again", slog.Any("error", err))
		_ = retry.Sleep(ctx, backoff.Pause(attempt+1))
	}
	return nil
}

// handlerError marks an error as the handler's, not Kafka's.
type handlerError struct{ error }

// forget drops the member id if the coordinator no longer knows it.
func (g *Group) forget(err error) {
	if errors.Is(err, kafkago.UnknownMemberId) || errors.Is(err, kafkago.FencedInstanceID) {
		g.member = ""
	}
}

// generation is the outcome of one join.
type generation struct {
	id         int
	member     string
	partitions []int      // assigned to this member
	view       topicState // the topic of the partitions
	lease      *lease
	commits    *commits
}

// follow runs the handlers of one generation until it ends. It returns the cause of the
// end, or nil if ctx ended.
func (g *Group) follow(ctx context.Context, gen generation, handle Handler) error {
	g.log.Info("partitions assigned", slog.Int("generation", gen.id), slog.Any("partitions", gen.partitions), slog.Any("topic_id", gen.view.id))
	g.client.metrics.rebalances.WithLabelValues(g.id).Inc()
	assigned := g.client.metrics.assigned.WithLabelValues(g.id)
	assigned.Set(float64(len(gen.partitions)))
	defer assigned.Set(0)

	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	beats, stopBeats := context.WithCancel(context.WithoutCancel(ctx))
	gen.commits = newCommits(context.WithoutCancel(ctx), g, gen)
	var beating, handling sync.WaitGroup
	beating.Go(func() { g.beat(beats, gen, stop) })
	beating.Go(func() { g.watchTopic(work, gen, stop) })
	for _, partition := range gen.partitions {
		handling.Go(func() {
			claim := newClaim(g, gen, partition)
			err := handle(work, claim)
			switch {
			case err != nil:
				stop(&handlerError{fmt.Errorf("handle %s/%d: %w", g.topic, partition, err)})
			default:
				stop(errGivenUp)
			}
		})
	}
	if len(gen.partitions) == 0 {
		<-work.Done()
	}
	handling.Wait()
	gen.lease.end(time.Now()) // from here on this member itself may give the partitions away
	stopBeats()
	beating.Wait()
	if ctx.Err() != nil {
		var failed *handlerError
		if cause := context.Cause(work); errors.As(cause, &failed) {
			return cause
		}
		return nil
	}
	return context.Cause(work)
}

var errGivenUp = errors.New("a handler gave up its partition")

// beat sends heartbeats until ctx ends. It stops the handlers when the coordinator
// reports the end of the generation, or when the lease ends without a response.
func (g *Group) beat(ctx context.Context, gen generation, stop context.CancelCauseFunc) {
	ticks := time.NewTicker(g.opts.Heartbeat)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		sent := time.Now()
		err := g.heartbeat(ctx, gen)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			gen.lease.renew(sent)
		case errors.Is(err, kafkago.RebalanceInProgress):
			gen.lease.dispute(sent, time.Now())
			stop(err)
		case generationOver(err):
			gen.lease.end(time.Now())
			stop(err)
		default:
			if time.Until(gen.lease.until()) <= 0 {
				stop(fmt.Errorf("no heartbeat before the lease ended: %w", err))
			}
		}
	}
}

// topicChangedError ends a generation because its topic has changed.
type topicChangedError struct{ topic string }

func (e *topicChangedError) Error() string { return "topic " + e.topic + " has changed" }

// watchTopic polls the topic until ctx ends, and stops the handlers when it has changed.
func (g *Group) watchTopic(ctx context.Context, gen generation, stop context.CancelCauseFunc) {
	gone := 0
	for retry.Sleep(ctx, g.watch) == nil {
		view, err := g.client.describe(ctx, g.topic)
		switch {
		case errors.Is(err, kafkago.UnknownTopicOrPartition):
			// A broker that has just started may not know the topic yet.
			if gone++; gone < 2 {
				continue
			}
		case err != nil:
			continue // other requests notice a lasting error
		default:
			gone = 0
		}
		if !view.sameAs(gen.view) {
			g.see(view)
			stop(&topicChangedError{g.topic})
			return
		}
	}
}

// generationOver reports whether err means that the members have to join again.
func generationOver(err error) bool {
	return errors.Is(err, kafkago.RebalanceInProgress) || errors.Is(err, kafkago.IllegalGeneration) ||
		errors.Is(err, kafkago.UnknownMemberId) || errors.Is(err, kafkago.FencedInstanceID)
}

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
)

// GroupOptions are set by code.
type GroupOptions struct {
	// SessionTimeout is how long the brokers wait for a sign of life before they
	// give the partitions to others. 0 means 10 s: long enough for a stop of
	// the garbage collector or a slow network, short for a writer that crashed.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long the brokers let the handlers of this member
	// finish when another one joins or leaves, and so how long the others may wait for it.
	// 0 means 20 s, or twice the session timeout if that is longer: three quarters of it are
	// for an INSERT under way. With less than the session timeout, a silent member loses its
	// partitions before its session ends.
	RebalanceTimeout time.Duration
	// Heartbeat is the interval of the signs of life, and so the time after
	// which a rebalance is noticed. 0 means 1 s.
	Heartbeat time.Duration
}

const (
	defaultSessionTimeout   = 10 * time.Second
	defaultRebalanceTimeout = 20 * time.Second
	defaultHeartbeat        = time.Second
	// joinSlack is what a broker may take to answer beyond the rebalance timeout.
	joinSlack = 10 * time.Second
	// watchInterval is how often each member looks whether the topic is the same. It is one
	// small request to any broker.
	watchInterval = 2 * time.Second
	// lastingGeneration is how long a generation has worked when what ended it is no reason
	// to wait before joining again.
	lastingGeneration = 5 * time.Second
)

// Group is this program's membership of a consumer group that reads one topic.
//
// # How a partition changes hands
//
// Membership follows Kafka's classic protocol, through segmentio/kafka-go's
// requests. Its ConsumerGroup is not used, because it stops the heartbeats as
// soon as a generation ends and then waits for the handlers: one that takes longer than
// the session timeout loses the right to commit what it has finished. Here:
//
//  1. Another member joins, leaves or dies. The next heartbeat is answered
//     REBALANCE_IN_PROGRESS.
//  2. The handlers' contexts end. Heartbeats go on, so the session stays alive;
//     the coordinator waits for us at most for the rebalance timeout, and until then
//     takes commits of the old generation. A handler finishes what it must, commits,
//     and returns.
//  3. All handlers have returned; only now do we join again. The coordinator hands out
//     the partitions of the next generation when every member has joined, so no two members
//     work on a partition while both are in time.
//  4. A handler that is late finds its commits refused with ILLEGAL_GENERATION or
//     UNKNOWN_MEMBER_ID, which is fault.Fenced. What it still writes elsewhere must be
//     harmless by other means; for the writer that is the deduplication token.
//
// The same holds when Run's context ends, except that step 3 leaves the group.
// When the coordinator cannot be reached, the generation goes on until its lease ends, see
// Claim.Lease, because only then may others have our partitions.
//
// # When the topic changes
//
// Every member asks a broker for the topic every two seconds. When it has more or fewer
// partitions, is gone, or has another id because it was created anew, the member's generation
// ends and it joins again. It says in the request which topic it has seen; the coordinator makes
// a new generation because that is not what it said before. While there is no topic,
// nobody has partitions.
//
// # When a commit has no answer
//
// It may be carried out later: accepted, when it carries the current generation and the id of a
// member. A follower that joins again as itself may be given the same generation. So the member leaves
// the group and joins it as a new one, which always makes a new generation: after that the
// coordinator refuses the old commit, and before it the commit shows in Claim.Position.
type Group struct {
	client *Client
	id     string
	topic  string
	opts   GroupOptions
	log    *slog.Logger
	watch  time.Duration
	member string     // our id, given by the coordinator; empty before and after
	view   topicState // the topic, as it was seen last
	seen   bool       // view is something
	// patient says that the next ask to join waits for all the others.
	patient bool

	byID     atomic.Bool // the coordinator takes commits by the topic's id
	doubtful atomic.Bool // a commit of the generation had no definite answer
}

// grace does what Claim.Grace says. The rest is for noticing the rebalance, and for joining
// again in time.
func (g *Group) grace() time.Duration { return g.opts.RebalanceTimeout / 4 * 3 }

// NewGroup returns the membership of group id, which begins with Run.
func (c *Client) NewGroup(id, topic string, opts GroupOptions) *Group {
	if opts.SessionTimeout <= 0 {
		opts.SessionTimeout = defaultSessionTimeout
	}
	if opts.RebalanceTimeout <= 0 {
		// The coordinator may give the partitions away when either timeout has passed. The
		// session timeout, which operators set, must be the one that counts.
		opts.RebalanceTimeout = max(defaultRebalanceTimeout, 2*opts.SessionTimeout)
	}
	if opts.Heartbeat <= 0 {
		opts.Heartbeat = defaultHeartbeat
	}
	return &Group{
		client: c, id: id, topic: topic, opts: opts, watch: watchInterval,
		log: c.log.With("group", id, "topic", topic),
	}
}

// Handler works on one partition until ctx ends. It may commit after that, with a
// context of its own, until it returns; see Group for how long it has. Returning earlier gives
// up the partition: the whole member joins again and gets, perhaps other, partitions.
// An error ends Run.
type Handler func(ctx context.Context, c *Claim) error

// Run joins the group and calls handle for each partition assigned, each in a
// goroutine of its own, generation after generation, until ctx ends or a handler
// fails. When it returns, all handlers have returned and the group is left.
// Trouble with Kafka is logged and waited out. A Group runs once at a time.
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
		if g.doubtful.Swap(false) {
			// The commit may still be under way. It is refused once this member is gone; by
			// joining as it, we might be given the same generation.
			g.leave(ctx)
		}
		var changed *topicChangedError
		if err == nil || errors.Is(err, kafkago.RebalanceInProgress) || errors.Is(err, kafkago.MemberIDRequired) || errors.As(err, &changed) {
			attempt = -1
			continue
		}
		g.client.suspect(err)
		g.patient = timedOut(err) && !g.patient
		if timedOut(err) { // the others take their time, or a connection is dead
			g.log.Info("asking the consumer group again", "error", err)
			continue
		}
		g.log.Warn("joining the consumer group again", "error", err)
		_ = sleep(ctx, backoff(max(attempt, 0)))
	}
	return nil
}

// handlerError is an error of a handler, as opposed to Kafka's.
type handlerError struct{ error }

// forget drops our member id when the coordinator does not know it any more.
func (g *Group) forget(err error) {
	if errors.Is(err, kafkago.UnknownMemberId) || errors.Is(err, kafkago.FencedInstanceID) {
		g.member = ""
	}
}

// generation is what the members agreed upon.
type generation struct {
	id         int
	member     string
	partitions []int      // ours
	view       topicState // the topic that they are of
	lease      *lease
}

// follow runs the handlers of one generation until it ends. The result says why
// it ended; nil when ctx did.
func (g *Group) follow(ctx context.Context, gen generation, handle Handler) error {
	g.log.Info("partitions assigned", "generation", gen.id, "partitions", gen.partitions, "topic_id", gen.view.id)
	g.client.metrics.rebalances.WithLabelValues(g.id).Inc()
	assigned := g.client.metrics.assigned.WithLabelValues(g.id)
	assigned.Set(float64(len(gen.partitions)))
	defer assigned.Set(0)

	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	beats, stopBeats := context.WithCancel(context.WithoutCancel(ctx))
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
	gen.lease.end(time.Now()) // from here on we may give the partitions away ourselves
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

// beat sends heartbeats until ctx ends, and stops the handlers when the
// coordinator says that the generation is over, or has not answered for too long.
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

// topicChangedError ends a generation whose topic is another one now.
type topicChangedError struct{ topic string }

func (e *topicChangedError) Error() string { return "topic " + e.topic + " has changed" }

// watchTopic looks at the topic until ctx ends, and stops the handlers when it is not what it was.
func (g *Group) watchTopic(ctx context.Context, gen generation, stop context.CancelCauseFunc) {
	gone := 0
	for sleep(ctx, g.watch) == nil {
		view, err := g.client.describe(ctx, g.topic)
		switch {
		case errors.Is(err, kafkago.UnknownTopicOrPartition):
			// A broker that has just started may not know the topic yet.
			if gone++; gone < 2 {
				continue
			}
		case err != nil:
			continue // what matters is noticed elsewhere
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

// generationOver reports whether err means that the members join again.
func generationOver(err error) bool {
	return errors.Is(err, kafkago.RebalanceInProgress) || errors.Is(err, kafkago.IllegalGeneration) ||
		errors.Is(err, kafkago.UnknownMemberId) || errors.Is(err, kafkago.FencedInstanceID)
}

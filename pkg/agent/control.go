package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	heartbeatInterval = 10 * time.Second
	// replyTimeout ends a stream whose server does not answer heartbeats: a
	// replica that hangs must not hold the agent.
	replyTimeout = 3 * heartbeatInterval
	// controlDelay is the longest pause before the next stream. Each pause is
	// random up to it, so that the agents of a cluster do not connect at the
	// same time.
	controlDelay = 5 * time.Second
	// A stream that lived for steady was healthy, and the next one is opened
	// after at most againDelay: configuration must always arrive within
	// seconds.
	steady     = time.Minute
	againDelay = 500 * time.Millisecond
	// An agent without a connection says why after firstPatience, which is longer
	// than connecting takes, and then at every patienceInterval.
	firstPatience    = 3 * time.Second
	patienceInterval = 30 * time.Second
	// clockTolerance is the clock offset of a host above which the agent warns:
	// spans and flows of different hosts are joined with that much slack.
	clockTolerance = 500 * time.Millisecond
)

// Stream is an open control stream.
type Stream = agentv1.ControlService_ConnectClient

// Controller opens control streams. pkg/agent/upstream implements it.
type Controller interface {
	Connect(ctx context.Context) (Stream, error)
	WaitReady(ctx context.Context) error
	// Trouble returns why no server can be reached, or nil if nothing is wrong by
	// now. It may take some seconds.
	Trouble(ctx context.Context, r *agentv1.Registration) error
}

// control keeps a stream open and passes on what arrives.
type control struct {
	up         Controller
	hello      *agentv1.Registration
	log        *slog.Logger
	metrics    *metrics
	exceptions *exceptions
	link       *link
	// connected is called when a server has answered on a new stream. It must
	// not block.
	connected func()
	// configured is called with each configuration, from one goroutine.
	configured func(*agentv1.Configuration)
	// inForce returns the current group and revision.
	inForce func() (group string, revision uint64)
}

// run keeps a stream open until ctx ends.
func (c *control) run(ctx context.Context) error {
	for ctx.Err() == nil {
		delay := c.attempt(ctx)
		_ = retry.Sleep(ctx, time.Duration(rand.Int64N(int64(delay)))) //nolint:gosec // jitter, not security
	}
	return nil
}

// attempt opens a stream and serves it to its end. It returns the longest pause
// before the next one.
func (c *control) attempt(ctx context.Context) (delay time.Duration) {
	err := c.awaitServer(ctx)
	begun := time.Now()
	if err == nil {
		err = c.session(ctx)
	}
	c.metrics.controlled.Set(0)
	switch {
	case ctx.Err() != nil:
	case time.Since(begun) > steady: // servers end old streams, to rebalance them
		c.link.ended()
		c.log.InfoContext(ctx, "control stream ended, opening another one", slog.Any("cause", upstream.Explained(err)))
		return againDelay
	default:
		c.link.lost(ctx, fmt.Errorf("control stream: %w", upstream.Explained(err)))
	}
	return controlDelay
}

// awaitServer blocks until a connection is up, and says why there is none.
func (c *control) awaitServer(ctx context.Context) error {
	for patience := firstPatience; ; patience = patienceInterval {
		waiting, cancel := context.WithTimeout(ctx, patience)
		err := c.up.WaitReady(waiting)
		cancel()
		if err == nil || ctx.Err() != nil || waiting.Err() == nil {
			return err
		}
		if trouble := c.up.Trouble(ctx, c.hello); trouble != nil && ctx.Err() == nil {
			c.link.lost(ctx, trouble)
		}
	}
}

// session runs one stream to its end and returns the cause.
func (c *control) session(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stream, err := c.up.Connect(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: c.hello}}); err != nil {
		return cause(stream, err)
	}
	confirm := make(chan struct{}, 1) // a configuration was applied; confirm it at once
	replied := make(chan struct{}, 1)
	g.Go(func() error { return c.receive(stream, confirm, replied) })
	g.Go(func() error { return c.beat(ctx, stream, confirm, replied) })
	return g.Wait()
}

// cause returns why the server ended a stream, where sending returns only
// io.EOF.
func cause(stream Stream, err error) error {
	if errors.Is(err, io.EOF) {
		if _, why := stream.Recv(); why != nil {
			return why
		}
	}
	return err
}

// receive handles the server's messages until the stream ends.
func (c *control) receive(stream Stream, confirm, replied chan<- struct{}) error {
	for first := true; ; first = false {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *agentv1.ConnectResponse_Configuration:
			c.metrics.controlled.Set(1)
			c.link.answered(stream.Context(), nil)
			c.configured(m.Configuration)
			wake(confirm)
		case *agentv1.ConnectResponse_HeartbeatReply:
			c.metrics.controlled.Set(1)
			if first { // a server sends the configuration before all else, if there is one
				c.link.answered(stream.Context(), upstream.UnknownGroup(c.hello.Group))
			}
			c.compareClocks(m.HeartbeatReply)
			wake(replied)
		default: // from a newer server
		}
		if first {
			c.connected()
		}
	}
}

// wake signals ch, which has a capacity of one.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// errNoReply means that the server stopped answering.
var errNoReply = errors.New("server does not answer heartbeats")

// beat sends heartbeats: at intervals, and at once when a configuration or the
// exceptions change.
func (c *control) beat(ctx context.Context, stream Stream, confirm, replied <-chan struct{}) error {
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	silent := time.NewTimer(replyTimeout)
	defer silent.Stop()
	for {
		if err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: c.heartbeat()}}); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // receive returns the cause
			}
			return err
		}
		for waiting := true; waiting; {
			select {
			case <-replied:
				silent.Reset(replyTimeout)
				continue
			case <-silent.C:
				return errNoReply
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			case <-confirm:
			case <-c.exceptions.changed:
			}
			waiting = false
		}
	}
}

func (c *control) heartbeat() *agentv1.Heartbeat {
	group, revision := c.inForce()
	return &agentv1.Heartbeat{
		TimeUnixNano: uint64(time.Now().UnixNano()), GroupId: group, Revision: revision, Exceptions: c.exceptions.texts(),
	}
}

// compareClocks estimates how far this host's clock is ahead: the server read
// its clock between the sending of the heartbeat and now (RFC 5905, section 8,
// with one exchange and the server's two times equal).
func (c *control) compareClocks(r *agentv1.HeartbeatReply) {
	sent, now, server := int64(r.AgentTimeUnixNano), time.Now().UnixNano(), int64(r.ServerTimeUnixNano)
	offset := time.Duration((sent-server)/2 + (now-server)/2)
	c.metrics.clockOffset.Set(offset.Seconds())
	if offset.Abs() > clockTolerance {
		c.log.Warn("this host's clock differs from the server's", slog.Duration("ahead_by", offset))
	}
}

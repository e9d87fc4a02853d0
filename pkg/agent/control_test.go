package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// fakeServer is the server's end of the streams that an agent opens.
type fakeServer struct {
	streams chan *fakeStream
	refuse  error // error of the next Connect
	away    atomic.Bool
	trouble error // why it is away
	log     output.Buffer
}

func (s *fakeServer) Trouble(context.Context, *agentv1.Registration) error { return s.trouble }

func (s *fakeServer) WaitReady(ctx context.Context) error {
	for s.away.Load() {
		if err := retry.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *fakeServer) Connect(ctx context.Context) (Stream, error) {
	if err := s.refuse; err != nil {
		s.refuse = nil
		return nil, err
	}
	st := &fakeStream{ctx: ctx, up: make(chan *agentv1.ConnectRequest, 100), down: make(chan *agentv1.ConnectResponse, 100)}
	s.streams <- st
	return st, nil
}

type fakeStream struct {
	grpc.ClientStream
	ctx  context.Context
	up   chan *agentv1.ConnectRequest
	down chan *agentv1.ConnectResponse
}

func (s *fakeStream) Context() context.Context { return s.ctx }

func (s *fakeStream) Send(m *agentv1.ConnectRequest) error {
	if s.ctx.Err() != nil {
		return io.EOF
	}
	s.up <- m
	return nil
}

func (s *fakeStream) Recv() (*agentv1.ConnectResponse, error) {
	select {
	case m, ok := <-s.down:
		if !ok {
			return nil, errors.New("the server ended the stream")
		}
		return m, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func configuration(group string, revision uint64) *agentv1.ConnectResponse {
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Configuration{
		Configuration: &agentv1.Configuration{GroupId: group, Revision: revision},
	}}
}

func reply(beat *agentv1.Heartbeat, ahead time.Duration) *agentv1.ConnectResponse {
	return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_HeartbeatReply{HeartbeatReply: &agentv1.HeartbeatReply{
		AgentTimeUnixNano: beat.TimeUnixNano, ServerTimeUnixNano: uint64(time.Now().Add(ahead).UnixNano()),
	}}}
}

// session starts a control with a fake server; stop ends it.
func session(t *testing.T) (s *fakeServer, c *control, stop func()) {
	t.Helper()
	return sessionWith(t, func() {})
}

func sessionWith(t *testing.T, connected func()) (s *fakeServer, c *control, stop func()) {
	t.Helper()
	s = &fakeServer{streams: make(chan *fakeStream, 10)}
	c, stop = run(t, s, connected)
	return s, c, stop
}

// run starts a control with s.
func run(t *testing.T, s *fakeServer, connected func()) (c *control, stop func()) {
	t.Helper()
	var inForce atomic.Pointer[agentv1.Configuration] // written and read by two goroutines
	log := slog.New(slog.NewTextHandler(&s.log, nil))
	c = &control{
		up: s, hello: &agentv1.Registration{AgentId: "a"}, log: log,
		metrics: newMetrics(nil), exceptions: newExceptions(),
		link:       newLink(log),
		connected:  connected,
		configured: inForce.Store,
		inForce:    func() (string, uint64) { cfg := inForce.Load(); return cfg.GetGroupId(), cfg.GetRevision() },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }()
	return c, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run = %v", err)
		}
	}
}

// nextBeat returns the next message, which must be a heartbeat.
func (s *fakeStream) nextBeat(t *testing.T) *agentv1.Heartbeat {
	t.Helper()
	select {
	case m := <-s.up:
		if m.GetHeartbeat() == nil {
			t.Fatalf("%v is not a heartbeat", m)
		}
		return m.GetHeartbeat()
	case <-time.After(time.Hour):
		t.Fatal("no heartbeat within an hour")
		return nil
	}
}

// A new server may know nothing of the agent's pods. Each stream triggers one
// report, after the server's first answer and not before.
func TestEveryStreamReportsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports := 0
		s, _, stop := sessionWith(t, func() { reports++ })
		defer stop()
		for n := range 3 {
			stream := <-s.streams
			synctest.Wait()
			if reports != n {
				t.Errorf("%d reports before stream %d was answered", reports, n+1)
			}
			stream.down <- configuration("g", 1)
			stream.down <- configuration("g", 2)
			synctest.Wait()
			if reports != n+1 {
				t.Errorf("%d reports after %d streams", reports, n+1)
			}
			close(stream.down)
		}
	})
}

func TestConfigurationIsConfirmedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := session(t)
		defer stop()
		stream := <-s.streams
		if m := <-stream.up; m.GetRegistration().GetAgentId() != "a" {
			t.Fatalf("the first message is %v", m)
		}
		if beat := stream.nextBeat(t); beat.Revision != 0 {
			t.Errorf("revision %d before the first configuration", beat.Revision)
		}
		begun := time.Now()
		stream.down <- configuration("g", 7)
		if beat := stream.nextBeat(t); beat.Revision != 7 || beat.GroupId != "g" {
			t.Errorf("confirmed %v", beat)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("confirmed after %s", took)
		}
	})
}

func TestExceptionIsSentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := session(t)
		defer stop()
		stream := <-s.streams
		<-stream.up
		stream.nextBeat(t)
		c.exceptions.set("port", "taken")
		if beat := stream.nextBeat(t); len(beat.Exceptions) != 1 || beat.Exceptions[0] != "port: taken" {
			t.Errorf("exceptions %q", beat.Exceptions)
		}
		c.exceptions.set("port", "")
		if beat := stream.nextBeat(t); len(beat.Exceptions) != 0 {
			t.Errorf("exceptions %q after the trouble", beat.Exceptions)
		}
	})
}

// The agent leaves a replica that accepts heartbeats but answers none.
func TestSilentServerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := session(t)
		defer stop()
		<-s.streams
		begun := time.Now()
		<-s.streams
		if took := time.Since(begun); took < replyTimeout || took > replyTimeout+controlDelay {
			t.Errorf("left after %s", took)
		}
	})
}

// A stream with answered heartbeats stays open.
func TestAnsweringStreamIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := session(t)
		defer stop()
		stream := <-s.streams
		<-stream.up
		for begun := time.Now(); time.Since(begun) < time.Hour; {
			stream.down <- reply(stream.nextBeat(t), 0)
		}
		if len(s.streams) != 0 {
			t.Error("another stream was opened")
		}
	})
}

// A stream that ends or cannot be opened is reopened within five seconds.
func TestStreamIsReopened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := session(t)
		defer stop()
		for range 10 {
			stream := <-s.streams
			s.refuse = errors.New("not now")
			begun := time.Now()
			close(stream.down)
			again := <-s.streams
			if took := time.Since(begun); took > 2*controlDelay {
				t.Errorf("reopened after %s", took)
			}
			close(again.down)
		}
	})
}

// An agent that reaches no server says why, soon and then at intervals, and so
// does /ready; the first answer ends both. Later absences leave it ready.
func TestAbsentServerIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := sessionWith(t, func() {})
		defer stop()
		first := <-s.streams
		first.down <- configuration("g", 1)
		synctest.Wait()
		if err := c.link.check(); err != nil {
			t.Errorf("after an answer: %v", err)
		}
		s.trouble = errors.New("connection refused")
		s.away.Store(true)
		close(first.down)
		_ = retry.Sleep(t.Context(), controlDelay+firstPatience+patienceInterval)
		if n := strings.Count(s.log.String(), "connection refused"); n != 2 {
			t.Errorf("%d warnings in\n%s", n, s.log.String())
		}
		if err := c.link.check(); err != nil || !strings.Contains(c.link.notice(), "connection refused") {
			t.Errorf("check %v, notice %q", err, c.link.notice())
		}
		s.away.Store(false)
		again := <-s.streams
		again.down <- configuration("g", 1)
		synctest.Wait()
		if !strings.Contains(s.log.String(), `msg="connected to a server" after=`) || c.link.notice() != "" {
			t.Errorf("notice %q, log\n%s", c.link.notice(), s.log.String())
		}
	})
}

// Until the first answer the agent is not ready, whatever it has kept.
func TestNeverReachedServerIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeServer{streams: make(chan *fakeStream, 10), trouble: errors.New("no such host")}
		s.away.Store(true)
		c, stop := run(t, s, func() {})
		defer stop()
		if err := c.link.check(); err == nil || !strings.Contains(err.Error(), "connecting") {
			t.Errorf("at the start: %v", err)
		}
		_ = retry.Sleep(t.Context(), firstPatience+time.Second)
		if err := c.link.check(); err == nil || !strings.Contains(err.Error(), "no such host") {
			t.Errorf("after %s: %v", firstPatience, err)
		}
	})
}

// A server refuses the token: the refusal is the cause.
func TestRefusedStreamIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeServer{streams: make(chan *fakeStream, 10), refuse: status.Error(codes.Unauthenticated, "shows no token")}
		c, stop := run(t, s, func() {})
		defer stop()
		synctest.Wait()
		if err := c.link.check(); err == nil || !strings.Contains(err.Error(), "Unauthenticated: shows no token") {
			t.Errorf("check: %v", err)
		}
	})
}

// The servers answer but send no configuration: there is no such group.
func TestUnknownGroupIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c, stop := sessionWith(t, func() {})
		defer stop()
		stream := <-s.streams
		<-stream.up
		stream.down <- reply(stream.nextBeat(t), 0)
		synctest.Wait()
		if err := c.link.checkGroup(); err == nil || !strings.Contains(s.log.String(), "agent group") {
			t.Errorf("group %v, log\n%s", err, s.log.String())
		}
		stream.down <- configuration("g", 1)
		synctest.Wait()
		if err := c.link.checkGroup(); err != nil {
			t.Errorf("after the group was created: %v", err)
		}
	})
}

// Servers end long streams to rebalance agents. That is no warning.
func TestPlannedReconnectIsNoWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := sessionWith(t, func() {})
		defer stop()
		stream := <-s.streams
		<-stream.up
		stream.down <- configuration("g", 1)
		for begun := time.Now(); time.Since(begun) < 2*steady; {
			stream.down <- reply(stream.nextBeat(t), 0)
		}
		close(stream.down)
		again := <-s.streams
		again.down <- configuration("g", 1)
		synctest.Wait()
		if strings.Contains(s.log.String(), "level=WARN") {
			t.Errorf("log\n%s", s.log.String())
		}
	})
}

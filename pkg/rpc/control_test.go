package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// session is an agent at a controller that remembers.
type session struct {
	registration *agentv1.Registration
	changed      chan struct{}
	ended        chan struct{}

	mu            sync.Mutex
	configuration *agentv1.Configuration
	beats         []*agentv1.Heartbeat
	err           error
	left          int
}

var serverTime = time.Unix(1_700_000_000, 5)

func (s *session) Heartbeat(h *agentv1.Heartbeat) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beats = append(s.beats, h)
	return serverTime
}

func (s *session) Configuration() *agentv1.Configuration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.configuration
}

func (s *session) configure(revision uint64) {
	s.mu.Lock()
	s.configuration = &agentv1.Configuration{GroupId: "g-1", Revision: revision}
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *session) end(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	close(s.ended)
}

func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *session) Changed() <-chan struct{} { return s.changed }
func (s *session) Ended() <-chan struct{}   { return s.ended }

func (s *session) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left++
}

// controller lets everybody in, unless err says otherwise.
type controller struct {
	err     error
	joined  chan *session
	initial *agentv1.Configuration
}

func newController() *controller { return &controller{joined: make(chan *session, 16)} }

func (c *controller) Join(_ context.Context, r *agentv1.Registration, _ string) (rpc.Session, error) {
	if c.err != nil {
		return nil, c.err
	}
	s := &session{registration: r, changed: make(chan struct{}, 1), ended: make(chan struct{}), configuration: c.initial}
	c.joined <- s
	return s, nil
}

func (c *controller) Check(_ context.Context, r *agentv1.Registration) (*agentv1.CheckResponse, error) {
	if c.err != nil {
		return nil, c.err
	}
	return &agentv1.CheckResponse{GroupName: r.Group}, nil
}

// pipe is a stream without a network, for time that passes at once.
type pipe struct {
	grpc.ServerStream

	ctx context.Context
	in  chan *agentv1.ConnectRequest
	out chan *agentv1.ConnectResponse
}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) Recv() (*agentv1.ConnectRequest, error) {
	select {
	case m, ok := <-p.in:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *pipe) Send(m *agentv1.ConnectResponse) error {
	select {
	case p.out <- m:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func register(edit func(*agentv1.Registration)) *agentv1.ConnectRequest {
	r := &agentv1.Registration{AgentId: "a1", InstanceId: "i1", Name: "node-1", Addresses: []string{"10.0.0.1", "fe80::1"}}
	if edit != nil {
		edit(r)
	}
	return &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: r}}
}

func heartbeat(h *agentv1.Heartbeat) *agentv1.ConnectRequest {
	return &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: h}}
}

// connect serves p until the stream ends, as gRPC does, and returns its status.
func connect(t *testing.T, s *rpc.ControlService, p *pipe, cancel func()) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- s.Connect(p)
	}()
	return done
}

func newService(t *testing.T, c rpc.Controller, opts rpc.ControlOptions) *rpc.ControlService {
	t.Helper()
	s, err := rpc.NewControlService(c, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newPipe(ctx context.Context) (*pipe, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	return &pipe{ctx: ctx, in: make(chan *agentv1.ConnectRequest), out: make(chan *agentv1.ConnectResponse)}, cancel
}

func TestDeadlines(t *testing.T) {
	tests := map[string]struct {
		agent func(p *pipe, c *controller)
		after time.Duration
		text  string
	}{
		"says nothing": {func(*pipe, *controller) {}, rpc.RegistrationTimeout, "no registration"},
		"registers and says nothing more": {
			func(p *pipe, _ *controller) { p.in <- register(nil) }, rpc.IdleTimeout, "no heartbeat",
		},
		"falls silent": {
			func(p *pipe, _ *controller) {
				p.in <- register(nil)
				time.Sleep(50 * time.Second) //nolint:forbidigo // of the bubble
				p.in <- heartbeat(&agentv1.Heartbeat{})
				<-p.out
			}, 50*time.Second + rpc.IdleTimeout, "no heartbeat",
		},
		"does not read": {
			func(p *pipe, c *controller) {
				p.in <- register(nil)
				(<-c.joined).configure(7)
			}, rpc.SendTimeout, "did not take",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newController()
				p, cancel := newPipe(t.Context())
				begun := time.Now()
				done := connect(t, newService(t, c, rpc.ControlOptions{}), p, cancel)
				tc.agent(p, c)
				err := <-done
				if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("the stream ended with %v", err)
				}
				if took := time.Since(begun); took != tc.after {
					t.Errorf("it ended after %v, want %v", took, tc.after)
				}
			})
		})
	}
}

// A slow agent gets the newest configuration and the newest reply, and those between are
// never sent.
func TestSlowAgentGetsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController()
		c.initial = &agentv1.Configuration{Revision: 1}
		p, cancel := newPipe(t.Context())
		done := connect(t, newService(t, c, rpc.ControlOptions{}), p, cancel)
		p.in <- register(nil)
		s := <-c.joined
		synctest.Wait() // the first is under way
		for i := range uint64(5) {
			s.configure(2 + i)
			p.in <- heartbeat(&agentv1.Heartbeat{TimeUnixNano: i})
			synctest.Wait()
		}
		var got []uint64
		for range 3 {
			m := <-p.out
			got = append(got, m.GetConfiguration().GetRevision()+100*m.GetHeartbeatReply().GetAgentTimeUnixNano())
		}
		if diff := cmp.Diff([]uint64{1, 6, 400}, got); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		close(p.in)
		if err := <-done; err != nil {
			t.Errorf("an orderly end: %v", err)
		}
		if s.left != 1 {
			t.Errorf("left %d times", s.left)
		}
	})
}

// What agents must not say, each with what is wrong in the status.
func TestRefusals(t *testing.T) {
	long := strings.Repeat("x", 300)
	tests := map[string]struct {
		say  []*agentv1.ConnectRequest
		err  error // of the controller
		code codes.Code
		text string
	}{
		"no registration":        {[]*agentv1.ConnectRequest{heartbeat(&agentv1.Heartbeat{})}, nil, codes.InvalidArgument, "not a registration"},
		"nothing at all":         {[]*agentv1.ConnectRequest{{}}, nil, codes.InvalidArgument, "not a registration"},
		"only the end":           {nil, nil, codes.InvalidArgument, "without a registration"},
		"a second registration":  {[]*agentv1.ConnectRequest{register(nil), register(nil)}, nil, codes.InvalidArgument, "second"},
		"no id":                  {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.AgentId = "" })}, nil, codes.InvalidArgument, "agent_id: it is empty"},
		"an id for a path":       {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.AgentId = "../x" })}, nil, codes.InvalidArgument, "agent_id"},
		"an endless id":          {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.AgentId = long })}, nil, codes.InvalidArgument, "longer"},
		"no instance":            {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.InstanceId = "" })}, nil, codes.InvalidArgument, "instance_id"},
		"no name":                {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.Name = "" })}, nil, codes.InvalidArgument, "name: it is empty"},
		"a name for a terminal":  {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.Name = "a\x1b[2J" })}, nil, codes.InvalidArgument, "printed"},
		"an endless group":       {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.Group = long })}, nil, codes.InvalidArgument, "group: it is longer"},
		"an address that is not": {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.Addresses = []string{"localhost"} })}, nil, codes.InvalidArgument, "localhost"},
		"a huge registration":    {[]*agentv1.ConnectRequest{register(func(r *agentv1.Registration) { r.Version = strings.Repeat("x", 1<<20) })}, nil, codes.InvalidArgument, "larger"},
		"a huge heartbeat":       {[]*agentv1.ConnectRequest{register(nil), heartbeat(&agentv1.Heartbeat{GroupId: strings.Repeat("x", 1<<20)})}, nil, codes.InvalidArgument, "larger"},
		"an id in use":           {[]*agentv1.ConnectRequest{register(nil)}, fault.As(fault.Fenced, errors.New("taken")), codes.AlreadyExists, "taken"},
		"a controller in doubt":  {[]*agentv1.ConnectRequest{register(nil)}, errors.New("kafka away"), codes.Unavailable, "kafka away"},
		"a controller full":      {[]*agentv1.ConnectRequest{register(nil)}, fault.As(fault.Overload, errors.New("full")), codes.ResourceExhausted, "full"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newController()
				c.err = tc.err
				reg := prometheus.NewRegistry()
				p, cancel := newPipe(t.Context())
				done := connect(t, newService(t, c, rpc.ControlOptions{Registerer: reg}), p, cancel)
				for _, m := range tc.say {
					p.in <- m
				}
				if tc.say == nil {
					close(p.in)
				}
				err := <-done
				if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("the stream ended with %v, want %v with %q", err, tc.code, tc.text)
				}
				if text := status.Convert(err).Message(); len(text) > 2000 {
					t.Errorf("a status of %d bytes", len(text))
				}
			})
		})
	}
}

// What an agent says of its trouble is made fit to be shown, and never costs it the stream.
func TestHeartbeatsAreCleaned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController()
		p, cancel := newPipe(t.Context())
		done := connect(t, newService(t, c, rpc.ControlOptions{}), p, cancel)
		p.in <- register(nil)
		s := <-c.joined
		many := make([]string, 40)
		many[0], many[1] = "a\x1b[2J\nb", strings.Repeat("é", 400)
		p.in <- heartbeat(&agentv1.Heartbeat{TimeUnixNano: 3, Exceptions: many})
		want := &agentv1.HeartbeatReply{AgentTimeUnixNano: 3, ServerTimeUnixNano: uint64(serverTime.UnixNano())}
		if diff := cmp.Diff(want, (<-p.out).GetHeartbeatReply(), protocmp.Transform()); diff != "" {
			t.Errorf("reply (-want +got):\n%s", diff)
		}
		got := s.beats[0].Exceptions
		if len(got) != 32 || got[0] != "a [2J b" || len(got[1]) > 520 || !strings.HasSuffix(got[1], "é...") {
			t.Errorf("%d exceptions: %q", len(got), got[:2])
		}
		close(p.in)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// client connects over a real network.
func controlClient(t *testing.T, s *rpc.ControlService) agentv1.ControlServiceClient {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	s.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return agentv1.NewControlServiceClient(conn)
}

func TestOverTheNetwork(t *testing.T) {
	c := newController()
	c.initial = &agentv1.Configuration{GroupId: "g-1", Revision: 1}
	agents := controlClient(t, newService(t, c, rpc.ControlOptions{MaxStreams: 1}))
	stream, err := agents.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(register(nil)); err != nil {
		t.Fatal(err)
	}
	s := <-c.joined
	receive := func() *agentv1.ConnectResponse {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if r := receive().GetConfiguration().GetRevision(); r != 1 {
		t.Errorf("revision %d at once, want 1", r)
	}
	s.configure(2)
	if r := receive().GetConfiguration().GetRevision(); r != 2 {
		t.Errorf("revision %d after the change, want 2", r)
	}
	if err := stream.Send(heartbeat(&agentv1.Heartbeat{TimeUnixNano: 9})); err != nil {
		t.Fatal(err)
	}
	if at := receive().GetHeartbeatReply().GetAgentTimeUnixNano(); at != 9 {
		t.Errorf("reply to %d", at)
	}

	second, err := agents.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one stream too many: %v", err)
	}

	s.end(fault.As(fault.Fenced, errors.New("replaced")))
	if _, err := stream.Recv(); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the controller's end: %v", err)
	}
	third, err := agents.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Send(register(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Recv(); err != nil {
		t.Errorf("the place of a stream that ended is not free: %v", err)
	}
}

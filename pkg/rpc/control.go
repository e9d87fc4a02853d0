package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// RegistrationTimeout disconnects a client that opens a stream and sends nothing.
	RegistrationTimeout = 10 * time.Second
	// IdleTimeout is six heartbeats.
	IdleTimeout = time.Minute
	// SendTimeout allows the largest configuration over a slow line.
	SendTimeout = 30 * time.Second
)

// ControlOptions are set by code. The zero value is usable.
type ControlOptions struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil does not register the metrics
	// MaxStreams bounds the concurrent streams. 0 means 10,000.
	MaxStreams int
	// Authorize returns nil if the caller of a stream may speak for an agent, otherwise a
	// status. Nil admits every caller.
	Authorize Authorize
}

// Authorize decides from the context of a call whether its caller may speak for an agent.
// It returns nil or a status.
type Authorize func(ctx context.Context, agent string) error

func (a Authorize) check(ctx context.Context, agent string) error {
	if a == nil {
		return nil
	}
	return a(ctx, agent)
}

// ControlService implements metaflow.agent.v1.ControlService. Create it with
// NewControlService.
type ControlService struct {
	agentv1.UnimplementedControlServiceServer

	controller Controller
	authorize  Authorize
	log        *slog.Logger
	metrics    *streamMetrics
	max        int64
	open       atomic.Int64
}

// NewControlService returns a ControlService that calls c. It starts nothing.
func NewControlService(c Controller, opts ControlOptions) (*ControlService, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.MaxStreams <= 0 {
		opts.MaxStreams = 10_000
	}
	s := &ControlService{controller: c, authorize: opts.Authorize, log: opts.Logger, max: int64(opts.MaxStreams)}
	var err error
	if s.metrics, err = newStreamMetrics(opts.Registerer, &s.open); err != nil {
		return nil, fmt.Errorf("register metrics of agents' streams: %w", err)
	}
	return s, nil
}

// Register adds the service to a gRPC server. Call it before the server serves.
func (s *ControlService) Register(r grpc.ServiceRegistrar) {
	agentv1.RegisterControlServiceServer(r, s)
}

// Connect implements agentv1.ControlServiceServer.
func (s *ControlService) Connect(grpcStream agentv1.ControlService_ConnectServer) error {
	defer s.open.Add(-1)
	if s.open.Add(1) > s.max {
		s.metrics.refused.WithLabelValues(codes.ResourceExhausted.String()).Inc()
		return status.Errorf(codes.ResourceExhausted, "this server has %d agents connected, which is its limit", s.max)
	}
	ctx, cancel := context.WithCancel(grpcStream.Context())
	defer cancel() // ends the goroutines that are not inside gRPC
	st := &stream{ControlService: s, received: make(chan received), sending: make(chan *agentv1.ConnectResponse), sent: make(chan error, 1)}
	go st.receive(ctx, grpcStream)
	session, err := st.join(ctx)
	if err != nil {
		err = agentStatus(ctx, err)
		s.metrics.refused.WithLabelValues(status.Code(err).String()).Inc()
		return err
	}
	defer session.Leave()
	go st.send(ctx, grpcStream)
	return agentStatus(ctx, st.serve(ctx, session))
}

// Check implements agentv1.ControlServiceServer.
func (s *ControlService) Check(ctx context.Context, in *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	r := in.GetRegistration()
	if r == nil {
		return nil, status.Error(codes.InvalidArgument, "registration: missing")
	}
	if err := checkRegistration(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, statusText("registration: "+err.Error()))
	}
	if err := s.authorize.check(ctx, r.AgentId); err != nil {
		return nil, err
	}
	found, err := s.controller.Check(ctx, r)
	if err != nil {
		return nil, agentStatus(ctx, err)
	}
	return found, nil
}

// stream is one call of Connect.
type stream struct {
	*ControlService

	received chan received
	sending  chan *agentv1.ConnectResponse
	sent     chan error // result of the last message given to sending
}

type received struct {
	message *agentv1.ConnectRequest
	err     error // io.EOF when the agent has closed the stream
}

// receive forwards messages until an error occurs.
func (st *stream) receive(ctx context.Context, from agentv1.ControlService_ConnectServer) {
	for {
		m, err := from.Recv()
		select {
		case st.received <- received{m, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// send sends messages one after another.
func (st *stream) send(ctx context.Context, to agentv1.ControlService_ConnectServer) {
	for {
		select {
		case m := <-st.sending:
			st.sent <- to.Send(m) // the next message comes only after this is read
		case <-ctx.Done():
			return
		}
	}
}

// Reasons for the end of a stream other than the agent's or the controller's.
var (
	errNoRegistration = status.Errorf(codes.DeadlineExceeded, "no registration within %s", RegistrationTimeout)
	errIdle           = status.Errorf(codes.DeadlineExceeded, "no heartbeat within %s", IdleTimeout)
	errSlow           = status.Errorf(codes.DeadlineExceeded, "the agent did not take a message within %s", SendTimeout)
	errSecond         = status.Error(codes.InvalidArgument, "a second registration on one stream")
	errStopping       = status.Error(codes.Unavailable, "the server stops, or closes the connection")
)

// join waits for the registration.
func (st *stream) join(ctx context.Context) (Session, error) {
	timeout := time.NewTimer(RegistrationTimeout)
	defer timeout.Stop()
	var first received
	select {
	case first = <-st.received:
	case <-timeout.C:
		return nil, errNoRegistration
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if first.err != nil {
		if errors.Is(first.err, io.EOF) {
			return nil, status.Error(codes.InvalidArgument, "the stream ended without a registration")
		}
		return nil, first.err
	}
	if err := checkSize(first.message); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	r := first.message.GetRegistration()
	if r == nil {
		return nil, status.Error(codes.InvalidArgument, "the first message is not a registration")
	}
	if err := checkRegistration(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, statusText("registration: "+err.Error()))
	}
	if err := st.authorize.check(ctx, r.AgentId); err != nil {
		return nil, err
	}
	return st.controller.Join(ctx, r, peerText(ctx))
}

// serve runs the stream from the registration to its end. It returns nil if the agent
// closed it.
func (st *stream) serve(ctx context.Context, session Session) error {
	idle := time.NewTimer(IdleTimeout)
	defer idle.Stop()
	slow := time.NewTimer(SendTimeout)
	slow.Stop()
	defer slow.Stop()
	next := outgoing{configuration: session.Configuration()}
	sending := st.sending // nil while a message is being sent
	for {
		to := sending
		message := next.peek()
		if message == nil {
			to = nil
		}
		select {
		case to <- message:
			st.took(&next)
			sending = nil
			slow.Reset(SendTimeout)
		case err := <-st.sent:
			if err != nil {
				return err
			}
			sending = st.sending
			slow.Stop()
		case in := <-st.received:
			if in.err != nil {
				if errors.Is(in.err, io.EOF) {
					return nil
				}
				return in.err
			}
			idle.Reset(IdleTimeout)
			if err := st.take(session, in.message, &next); err != nil {
				return err
			}
		case <-session.Changed():
			next.configuration = session.Configuration()
		case <-session.Ended():
			return session.Err()
		case <-idle.C:
			return errIdle
		case <-slow.C:
			return errSlow
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (st *stream) take(session Session, m *agentv1.ConnectRequest, next *outgoing) error {
	if err := checkSize(m); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	switch m := m.Message.(type) {
	case *agentv1.ConnectRequest_Registration:
		return errSecond
	case *agentv1.ConnectRequest_Heartbeat:
		st.metrics.heartbeats.Inc()
		h := m.Heartbeat
		cleanHeartbeat(h)
		sent := h.TimeUnixNano
		now := session.Heartbeat(h)
		next.reply = &agentv1.HeartbeatReply{AgentTimeUnixNano: sent, ServerTimeUnixNano: uint64(now.UnixNano())}
	default: // from a newer agent
	}
	return nil
}

// outgoing is the next message of each kind. Only the newest one of a kind matters.
type outgoing struct {
	configuration *agentv1.Configuration
	reply         *agentv1.HeartbeatReply
}

// peek returns the next message to send, or nil.
func (o *outgoing) peek() *agentv1.ConnectResponse {
	switch {
	case o.configuration != nil:
		return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Configuration{Configuration: o.configuration}}
	case o.reply != nil:
		return &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_HeartbeatReply{HeartbeatReply: o.reply}}
	}
	return nil
}

// took records that the result of peek is being sent.
func (st *stream) took(o *outgoing) {
	if o.configuration != nil {
		st.metrics.configurations.Inc()
		o.configuration = nil
		return
	}
	o.reply = nil
}

// agentStatus converts the end of a stream to the status for the agent.
func agentStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return errStopping // read only if the server stops
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unavailable
	switch fault.ClassOf(err) {
	case fault.Fenced:
		code = codes.AlreadyExists
	case fault.Rejected:
		code = codes.InvalidArgument
	case fault.Overload:
		code = codes.ResourceExhausted
	case fault.Retryable:
	}
	return status.Error(code, statusText(err.Error()))
}

func peerText(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

package rpc

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/metaflowys/metaflow-server/pkg/rpc/agentauth"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
	"github.com/metaflowys/metaflow-server/schema"
)

// exporter is what the hand-made service description calls.
type exporter interface {
	answer(ctx context.Context, receive func(any) error) (any, error)
}

// service takes the requests of one signal. They stay bytes.
type service struct {
	*Server
	method   string // as grpc names it
	desc     grpc.ServiceDesc
	consumer Consumer
	metrics  *signalMetrics
}

// newService returns the service that the signal's method is of. Its handler
// receives bytes and answers with bytes.
func (s *Server) newService(sink Sink) (*service, error) {
	sig := sink.Signal
	name, method, found := strings.Cut(strings.TrimPrefix(sig.Method, "/"), "/")
	if !found {
		return nil, fmt.Errorf("signal %s: method %q is not of the form /service/method", sig.Name, sig.Method)
	}
	m, err := newSignalMetrics(s.registerer, sig.Name)
	if err != nil {
		return nil, err
	}
	return &service{
		Server: s, method: sig.Method, consumer: sink.Consumer, metrics: m,
		desc: grpc.ServiceDesc{
			ServiceName: name, HandlerType: (*exporter)(nil),
			Methods: []grpc.MethodDesc{{MethodName: method, Handler: exportHandler}},
		},
	}, nil
}

//nolint:revive // the order of parameters is gRPC's
func exportHandler(srv any, ctx context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	return srv.(exporter).answer(ctx, receive)
}

// admit runs when the headers of a call have arrived and nothing else. It must
// not block: gRPC calls it from the goroutine that reads the connection.
func (s *Server) admit(ctx context.Context, info *tap.Info) (context.Context, error) {
	if err := checkContentType(info.Header.Get("content-type")); err != nil {
		return ctx, err
	}
	sig := s.services[info.FullMethodName]
	if err := s.authorize(ctx, info.FullMethodName); err != nil {
		return ctx, err
	}
	ctx, why := connOf(ctx).open(ctx, info, sig)
	switch {
	case why == "":
		return ctx, nil
	case sig == nil:
		return ctx, s.refusedOther(why)
	default:
		sig.metrics.requests.WithLabelValues(codes.Unavailable.String()).Inc()
		return ctx, sig.refused(why)
	}
}

// authorize holds a call to the agent that its metadata names. Calls of the services for agents are
// for members of the installation, also when they name no agent.
func (s *Server) authorize(ctx context.Context, method string) (err error) {
	agent := ""
	if s.auth != nil {
		agent = agentauth.Metadata(ctx, schema.MetadataAgent)
	}
	switch {
	case agent != "":
		err = s.auth.Check(ctx, agent)
	case s.auth != nil && strings.HasPrefix(method, agentServices):
		if !s.auth.Authenticated(ctx) {
			err = status.Error(codes.Unauthenticated,
				"this service is for agents of this installation: show one of control.agent_tokens or control.group_tokens, or a certificate where those are asked for")
		}
	case s.services[method] != nil:
		err = bearing(ctx, s.bearer, s.bearerKey)
	case !strings.HasPrefix(method, healthService):
		err = bearing(ctx, s.callers, s.callersKey)
	}
	if err != nil {
		s.unauthorized.WithLabelValues(status.Code(err).String()).Inc()
	}
	return err
}

// healthService asks for no token: probes have none.
const healthService = "/grpc.health.v1.Health/"

// bearing refuses a caller without one of the tokens. A nil set asks for none.
func bearing(ctx context.Context, known *tokens.Set, key string) error {
	if known == nil || known.Match(tokens.Bearer(agentauth.Metadata(ctx, metadataAuthorization))).Known() {
		return nil
	}
	return status.Errorf(codes.Unauthenticated, "the bearer token is missing or wrong: send one of %s as authorization: Bearer TOKEN", key)
}

// metadataAuthorization is the key under which clients send bearer tokens.
const metadataAuthorization = "authorization"

// checkContentType refuses encodings other than protobuf, which gRPC would take
// for protobuf and call malformed.
func checkContentType(values []string) error {
	for _, v := range values {
		v, _, _ = strings.Cut(strings.ToLower(v), ";")
		if v != "application/grpc" && v != "application/grpc+proto" {
			return status.Errorf(codes.Unimplemented, "content-type %q is not supported, send application/grpc+proto", statusText(v))
		}
	}
	return nil
}

func (s *service) answer(ctx context.Context, receive func(any) error) (any, error) {
	start := time.Now()
	resp, err := s.export(ctx, receive)
	s.metrics.answered(status.Code(err), time.Since(start))
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// export receives one request and has it consumed. All its errors are statuses.
func (s *service) export(ctx context.Context, receive func(any) error) (resp any, err error) {
	m := message{server: s.Server, call: callOf(ctx)}
	if err := m.call.hold(ctx); err != nil {
		return nil, err
	}
	// After a panic a goroutine of the consumer may still read the body.
	returned := false
	defer func() {
		if cause := recover(); cause != nil {
			resp, err = nil, s.panicked(ctx, cause)
		}
		m.release(returned)
	}()

	resp, err = s.receiveAndConsume(ctx, &m, receive)
	returned = true
	return resp, err
}

func (s *service) receiveAndConsume(ctx context.Context, m *message, receive func(any) error) (any, error) {
	if err := receive(m); err != nil {
		return nil, m.call.cause(err)
	}
	if m.refused != "" {
		return nil, s.refused(m.refused)
	}
	s.metrics.bytes.Add(float64(len(*m.body)))
	if len(*m.body) == 0 {
		return response{}, nil
	}
	result, err := s.consumer.Consume(ctx, s.requestOf(ctx, m))
	if err != nil {
		if ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		return nil, s.statusOf(err)
	}
	return response(signal.AppendResponse(nil, result)), nil
}

func (s *Server) requestOf(ctx context.Context, m *message) signal.Request {
	return signal.Request{
		Body:     *m.body,
		Lender:   m,
		Agent:    agentauth.Metadata(ctx, schema.MetadataAgent),
		Resend:   agentauth.Metadata(ctx, schema.MetadataResend) == "1" && (s.auth == nil || s.auth.Authenticated(ctx)),
		Received: receivedOf(ctx),
		Peer:     peerOf(ctx),
	}
}

// receivedOf returns the zero time for an invalid time.
func receivedOf(ctx context.Context) time.Time {
	ns, err := strconv.ParseInt(agentauth.Metadata(ctx, schema.MetadataReceived), 10, 64)
	if err != nil || ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func peerOf(ctx context.Context) netip.AddrPort {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.AddrPort{}
	}
	return addressOf(p.Addr)
}

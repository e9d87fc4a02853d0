package webstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/stats"
)

// packageName is the prefix of the gRPC service names.
const packageName = "oteldemo."

// messages is the codec of the WebStore's gRPC: Go structs, sent as JSON
// (content-type application/grpc+json). It needs no generated code.
type messages struct{}

var _ encoding.Codec = messages{}

func (messages) Name() string                       { return "json" }
func (messages) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (messages) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// method returns a unary method that calls h. It supports no interceptors.
func method[Req, Resp any](s *service, name string, h func(context.Context, *Req) (*Resp, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			req := new(Req)
			if err := decode(req); err != nil {
				return nil, err
			}
			if err := s.work(ctx); err != nil {
				return nil, err
			}
			return h(ctx, req)
		},
	}
}

// call calls a method of another service and preserves the status of its error.
func call[Resp any](ctx context.Context, s *service, to, method string, req any) (*Resp, error) {
	conn, ok := s.peers[to]
	if !ok {
		return nil, fmt.Errorf("call %s: %s has no edge to it", to, s.name)
	}
	resp := new(Resp)
	if err := conn.Invoke(ctx, "/"+rpcName(to)+"/"+method, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *service) newRPCServer(methods []grpc.MethodDesc) *grpc.Server {
	server := grpc.NewServer(
		grpc.ForceServerCodec(messages{}),
		grpc.StatsHandler(peerAddress{Handler: otelgrpc.NewServerHandler(s.rpcOptions()...)}),
	)
	server.RegisterService(&grpc.ServiceDesc{ServiceName: rpcName(s.name), Methods: methods}, nil)
	return server
}

func (s *service) dialRPC(address string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return s.dialer().DialContext(ctx, "tcp", address)
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(messages{})),
		grpc.WithStatsHandler(peerAddress{otelgrpc.NewClientHandler(s.rpcOptions()...), address}),
	}
	if s.idleLimit > 0 {
		options = append(options, grpc.WithIdleTimeout(s.idleLimit))
	}
	return grpc.NewClient("passthrough:///"+address, options...)
}

func (s *service) rpcOptions() []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(s.telemetry.provider),
		otelgrpc.WithPropagators(propagator),
	}
}

// peerAddress adds the other end of the socket to the spans of otelgrpc, which
// records only the server's, and the intended server to the spans of calls that
// found no socket.
type peerAddress struct {
	stats.Handler
	server string // host:port, for a client
}

func (h peerAddress) HandleRPC(ctx context.Context, rs stats.RPCStats) {
	switch rs := rs.(type) {
	case *stats.Begin:
		if host, port, ok := split(h.server); ok && rs.Client {
			trace.SpanFromContext(ctx).SetAttributes(semconv.ServerAddress(host), semconv.ServerPort(port))
		}
	case *stats.OutHeader:
		if rs.Client {
			setPeer(ctx, rs.RemoteAddr)
		}
	case *stats.InHeader:
		if !rs.Client {
			setPeer(ctx, rs.RemoteAddr)
		}
	}
	h.Handler.HandleRPC(ctx, rs)
}

func setPeer(ctx context.Context, addr net.Addr) {
	if addr == nil {
		return
	}
	if host, port, ok := split(addr.String()); ok {
		trace.SpanFromContext(ctx).SetAttributes(semconv.NetworkPeerAddress(host), semconv.NetworkPeerPort(port))
	}
}

// split splits host:port.
func split(address string) (host string, port int, ok bool) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, false
	}
	port, err = strconv.Atoi(text)
	return host, port, err == nil
}

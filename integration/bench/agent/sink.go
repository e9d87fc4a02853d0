package main

import (
	"context"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that the sink's is based on
	"google.golang.org/grpc/mem"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// sinkVariable turns this program into the sink.
	sinkVariable = "AGENTBENCH_SINK"
	// portVariable is the port that the sink configures agents to listen on.
	portVariable = "AGENTBENCH_PORT"
)

// serveSink receives traces and drops them.
func serveSink(addr string) error {
	listener, err := net.Listen("tcp", addr) //nolint:noctx // returns at once
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.ForceServerCodecV2(forgetful{encoding.GetCodecV2("proto")}))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "opentelemetry.proto.collector.trace.v1.TraceService",
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(_ any, _ context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return &nothing{}, receive(&nothing{})
		}}},
	}, nil)
	agentv1.RegisterControlServiceServer(server, controller{port: os.Getenv(portVariable)})
	return server.Serve(listener)
}

// nothing is a message whose bytes are ignored.
type nothing struct{}

// forgetful is protobuf for every message except nothing.
type forgetful struct{ encoding.CodecV2 }

func (f forgetful) Marshal(v any) (mem.BufferSlice, error) {
	if _, ok := v.(*nothing); ok {
		return nil, nil
	}
	return f.CodecV2.Marshal(v)
}

func (f forgetful) Unmarshal(data mem.BufferSlice, v any) error {
	if _, ok := v.(*nothing); ok {
		return nil
	}
	return f.CodecV2.Unmarshal(data, v)
}

// controller sends every agent the same configuration.
type controller struct {
	agentv1.UnimplementedControlServiceServer
	port string
}

func (c controller) Connect(stream agentv1.ControlService_ConnectServer) error {
	err := stream.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Configuration{Configuration: &agentv1.Configuration{
		GroupId: "g-default000", GroupName: "default", Revision: 1,
		Yaml: "inputs:\n  integration:\n    enabled: true\n    listen_port: " + c.port + "\n",
	}}})
	for err == nil {
		var m *agentv1.ConnectRequest
		m, err = stream.Recv()
		if beat := m.GetHeartbeat(); err == nil && beat != nil {
			err = stream.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_HeartbeatReply{HeartbeatReply: &agentv1.HeartbeatReply{
				AgentTimeUnixNano: beat.TimeUnixNano, ServerTimeUnixNano: uint64(time.Now().UnixNano()),
			}}})
		}
	}
	return err
}

// startSink starts the sink and returns its address.
func startSink(ctx context.Context, o options, port string) (*measured.Process, string, error) {
	return measured.StartServing(ctx, o.verbose, sinkVariable, portVariable+"="+port)
}

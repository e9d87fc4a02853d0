package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// reports takes every report, and counts pods.
type reports struct {
	agentv1.UnimplementedResourceServiceServer
	pods int
}

func (r *reports) Report(_ context.Context, req *agentv1.ReportRequest) (*agentv1.ReportResponse, error) {
	r.pods += len(req.Pods)
	return &agentv1.ReportResponse{}, nil
}

// echo answers the first message of a stream.
type echo struct {
	agentv1.UnimplementedControlServiceServer
}

func (echo) Connect(s agentv1.ControlService_ConnectServer) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	return s.Send(&agentv1.ConnectResponse{})
}

func invoke(ctx context.Context, conn *grpc.ClientConn, method string, body []byte) error {
	var reply []byte
	return conn.Invoke(ctx, method, body, &reply, grpc.ForceCodec(otlptest.Raw))
}

// A few kilobytes on the wire that would take a gigabyte once they are decoded, of services that
// nobody has to show anything for.
func TestOtherServicesDecodeWithinBounds(t *testing.T) {
	taken := &reports{}
	srv := start(t, testConfig(), accept, rpc.Options{Services: []func(grpc.ServiceRegistrar){func(r grpc.ServiceRegistrar) {
		agentv1.RegisterResourceServiceServer(r, taken)
		agentv1.RegisterControlServiceServer(r, echo{})
	}}})
	const (
		report  = agentv1.ResourceService_Report_FullMethodName
		check   = healthpb.Health_Check_FullMethodName
		connect = agentv1.ControlService_Connect_FullMethodName
	)
	emptyPods := func(size int) []byte { return bytes.Repeat([]byte{0x2a, 0}, size/2) }
	unknown := func(size int) []byte { return bytes.Repeat([]byte{0xa2, 0x06, 1, 'x'}, size/4) }
	nested := func(size int) []byte { // pods with empty addresses
		pod := bytes.Repeat([]byte{0x3a, 0}, 60)
		return bytes.Repeat(append([]byte{0x2a, byte(len(pod))}, pod...), size/(len(pod)+2))
	}
	packed := func(text []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(text)
		_ = w.Close()
		return b.Bytes()
	}
	tests := map[string]struct {
		method   string
		body     []byte
		encoding string
		want     codes.Code
	}{
		"compressed empty pods":          {report, packed(emptyPods(8 << 20)), "gzip", codes.Unimplemented},
		"compressed unknown fields":      {check, packed(unknown(48 << 20)), "gzip", codes.Unimplemented},
		"compressed stream":              {connect, packed(unknown(48 << 20)), "gzip", codes.Unimplemented},
		"plain empty pods":               {report, emptyPods(4 << 20), "identity", codes.ResourceExhausted},
		"plain empty addresses":          {report, nested(4 << 20), "identity", codes.ResourceExhausted},
		"too long a report":              {report, unknown(5 << 20), "identity", codes.ResourceExhausted},
		"too long a health check":        {check, unknown(5 << 10), "identity", codes.ResourceExhausted},
		"too long a message of a stream": {connect, unknown(65 << 10), "identity", codes.ResourceExhausted},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			conn := dialPrecompressed(t, srv, tc.encoding)
			before := allocated()
			err := invoke(t.Context(), conn, tc.method, tc.body)
			if status.Code(err) != tc.want {
				t.Errorf("%v, want %s", err, tc.want)
			}
			if grew := allocated() - before; grew > 64<<20 {
				t.Errorf("client and server allocated %d MiB", grew>>20)
			}
		})
	}
	if taken.pods != 0 {
		t.Errorf("%d pods were taken", taken.pods)
	}

	large := &agentv1.ReportRequest{AgentId: "a"}
	for range 1000 {
		large.Pods = append(large.Pods, &agentv1.Pod{
			Uid: "0e5e1d5c-5e0b-4a8e-8f2b-0a9d6a2c7f11", Namespace: "shop", Name: "checkout-7d9c5b7c9-abcde", Workload: "checkout",
			Addresses: []*agentv1.PodAddress{{Address: []byte{10, 0, 0, 1}}, {Address: make([]byte, 16)}},
		})
	}
	for range 100 {
		s := &agentv1.Service{Namespace: "shop", Name: "checkout"}
		for range 1000 {
			s.Endpoints = append(s.Endpoints, []byte{10, 0, 0, 1})
		}
		large.Services = append(large.Services, s)
	}
	if err := invoke(t.Context(), dialPrecompressed(t, srv, "identity"), report, encoded(t, large)); err != nil || taken.pods != 1000 {
		t.Errorf("a report of %d bytes as large as an agent's: %v, %d pods", proto.Size(large), err, taken.pods)
	}
	if _, err := healthpb.NewHealthClient(dial(t, srv.Addr())).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	stream, err := agentv1.NewControlServiceClient(dial(t, srv.Addr())).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&agentv1.ConnectRequest{}) // Recv tells
	if _, err := stream.Recv(); err != nil {
		t.Errorf("a message of a stream: %v", err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
}

// Many reports that are decoded and then wait for Kafka count until they are answered.
func TestDecodedMessagesAreBudgeted(t *testing.T) {
	waiting, release := make(chan struct{}), make(chan struct{})
	srv := start(t, testConfig(), accept, rpc.Options{Services: []func(grpc.ServiceRegistrar){func(r grpc.ServiceRegistrar) {
		agentv1.RegisterResourceServiceServer(r, slowReports{waiting: waiting, release: release})
	}}})
	const calls = 40
	body := bytes.Repeat([]byte{0x2a, 0}, 50_000) // 16 MB each
	ended := make(chan error)
	conn := dialPrecompressed(t, srv, "identity")
	for range calls {
		go func() { ended <- invoke(t.Context(), conn, agentv1.ResourceService_Report_FullMethodName, body) }()
	}
	refused, held := 0, 0
	for refused+held < calls {
		select {
		case <-waiting:
			held++
		case err := <-ended:
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%v, want UNAVAILABLE", err)
			}
			refused++
		}
	}
	if held == 0 || held > 10 {
		t.Errorf("%d of %d reports of 16 MB are held at a time; 160 MiB have room for 10", held, calls)
	}
	close(release)
	for range held {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

type slowReports struct {
	agentv1.UnimplementedResourceServiceServer
	waiting, release chan struct{}
}

func (r slowReports) Report(context.Context, *agentv1.ReportRequest) (*agentv1.ReportResponse, error) {
	r.waiting <- struct{}{}
	<-r.release
	return &agentv1.ReportResponse{}, nil
}

// members lets those speak for any agent who show the token.
type members struct{}

func (members) Check(context.Context, string) error { return nil }

func (members) Authenticated(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(schema.MetadataToken)) > 0
}

// Who names no agent is asked for the token too, by the services that only agents call.
func TestServicesForAgentsAreForMembers(t *testing.T) {
	taken := &reports{}
	srv := start(t, testConfig(), accept, rpc.Options{Auth: members{}, Services: []func(grpc.ServiceRegistrar){func(r grpc.ServiceRegistrar) {
		agentv1.RegisterResourceServiceServer(r, taken)
		agentv1.RegisterControlServiceServer(r, echo{})
	}}})
	conn := dialPrecompressed(t, srv, "identity")
	for method, want := range map[string]codes.Code{
		agentv1.ResourceService_Report_FullMethodName: codes.Unauthenticated,
		agentv1.ControlService_Connect_FullMethodName: codes.Unauthenticated,
		healthpb.Health_Check_FullMethodName:          codes.OK,
	} {
		if err := invoke(t.Context(), conn, method, nil); status.Code(err) != want {
			t.Errorf("%s without a token: %v, want %s", method, err, want)
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), schema.MetadataToken, "x")
		if err := invoke(ctx, conn, method, nil); err != nil {
			t.Errorf("%s with the token: %v", method, err)
		}
	}
	if _, err := client(t, srv).Export(t.Context(), otlptest.Sized(100)); err != nil {
		t.Errorf("spans of a collector, which names no agent: %v", err)
	}
}

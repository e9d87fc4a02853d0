package rpc_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

func flowRequest() *agentv1.ExportFlowsRequest {
	return &agentv1.ExportFlowsRequest{AgentId: "agent-1", Groups: []*agentv1.FlowGroup{{Flows: []*agentv1.Flow{{Connection: 1}}}}}
}

func TestFlowsComeAsTheyWereSent(t *testing.T) {
	reg := prometheus.NewRegistry()
	var got *agentv1.ExportFlowsRequest
	var result signal.Result
	srv := start(t, testConfig(), accept, rpc.Options{Registerer: reg}, flowsTo(consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		if req.Agent != "agent-1" || !req.Resend || !req.Peer.IsValid() {
			t.Errorf("request of %q, resend %v, from %s", req.Agent, req.Resend, req.Peer)
		}
		got = new(agentv1.ExportFlowsRequest)
		return result, proto.Unmarshal(req.Body, got)
	})))
	conn := dial(t, srv.Addr())
	ctx := metadata.AppendToOutgoingContext(t.Context(), schema.MetadataAgent, "agent-1", schema.MetadataResend, "1")
	for _, result = range []signal.Result{{}, {Rejected: 3, Message: "3 flows rejected"}} {
		resp, err := agentv1.NewFlowServiceClient(conn).ExportFlows(ctx, flowRequest())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(flowRequest(), got, protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		if p := resp.GetPartialSuccess(); p.GetRejectedFlows() != result.Rejected || p.GetErrorMessage() != result.Message || (p != nil) != (result.Rejected > 0) {
			t.Errorf("answer %v, want %+v", resp, result)
		}
	}
	for signal, want := range map[string]float64{"traces": 0, "flows": 2} {
		if n := requests(t, reg, signal); n != want {
			t.Errorf("%v requests of %s, want %v", n, signal, want)
		}
	}
	health, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: agentv1.FlowService_ServiceDesc.ServiceName})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", health, err)
	}
}

// requests is how many requests of a signal were answered.
func requests(t *testing.T, reg prometheus.Gatherer, signal string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "metaflow_gateway_requests_total" && l.GetName() == "signal" && l.GetValue() == signal {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

func TestFlowsAreAnsweredAsTraces(t *testing.T) {
	tests := map[string]struct {
		err  error
		want codes.Code
	}{
		"not protobuf":  {fault.As(fault.Rejected, errors.New("malformed")), codes.InvalidArgument},
		"Kafka is away": {errors.New("broker away"), codes.Unavailable},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			srv := start(t, testConfig(), nil, rpc.Options{}, flowsTo(consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
				return signal.Result{}, tc.err
			})))
			_, err := agentv1.NewFlowServiceClient(dial(t, srv.Addr())).ExportFlows(t.Context(), flowRequest())
			if status.Code(err) != tc.want {
				t.Errorf("%v, want %s", err, tc.want)
			}
			if _, ok := retryDelay(err); ok != (tc.want == codes.Unavailable) {
				t.Errorf("RetryInfo %v", ok)
			}
		})
	}
	t.Run("panic", func(t *testing.T) {
		srv := start(t, testConfig(), nil, rpc.Options{}, flowsTo(consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
			panic("boom")
		})))
		if _, err := agentv1.NewFlowServiceClient(dial(t, srv.Addr())).ExportFlows(t.Context(), flowRequest()); status.Code(err) != codes.Internal {
			t.Error(err)
		}
	})
	t.Run("nobody takes them", func(t *testing.T) {
		srv := start(t, testConfig(), accept, rpc.Options{})
		if _, err := agentv1.NewFlowServiceClient(dial(t, srv.Addr())).ExportFlows(t.Context(), flowRequest()); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
	})
}

// Traces and flows share what may be in flight.
func TestFlowsAreBoundedWithTraces(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestsInFlight = 1
	entered, leave := make(chan struct{}), make(chan struct{})
	srv := start(t, cfg, consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		close(entered)
		<-leave
		return signal.Result{}, nil
	}), rpc.Options{}, flowsTo(accept))
	done := make(chan error, 1)
	go func() {
		_, err := client(t, srv).Export(context.Background(), otlptest.Sized(100))
		done <- err
	}()
	<-entered
	_, err := agentv1.NewFlowServiceClient(dial(t, srv.Addr())).ExportFlows(t.Context(), flowRequest())
	if _, ok := retryDelay(err); status.Code(err) != codes.Unavailable || !ok {
		t.Errorf("%v, want UNAVAILABLE with RetryInfo", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

package upstream_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

type resources struct {
	agentv1.UnimplementedResourceServiceServer
}

func (resources) Report(ctx context.Context, r *agentv1.ReportRequest) (*agentv1.ReportResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if ids := md.Get(schema.MetadataAgent); len(ids) != 1 || ids[0] != r.AgentId {
		return nil, status.Errorf(codes.InvalidArgument, "ids are %v", ids)
	}
	return &agentv1.ReportResponse{Rejected: int64(len(r.Pods)), ErrorMessage: "too many"}, nil
}

func TestReport(t *testing.T) {
	r := newReplica(t, nil)
	r.stop()
	c := newClient(t, testConfig(r.addr), upstream.Options{AgentID: "a"})
	if _, err := c.Report(t.Context(), &agentv1.ReportRequest{}); err == nil || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("without a server: %v", err)
	}
	r.start(t, rpc.Options{Services: []func(grpc.ServiceRegistrar){func(s grpc.ServiceRegistrar) { agentv1.RegisterResourceServiceServer(s, resources{}) }}})
	waitReady(t, c)
	got, err := c.Report(t.Context(), &agentv1.ReportRequest{AgentId: "a", Pods: []*agentv1.Pod{{}, {}}})
	if err != nil || got != (signal.Result{Rejected: 2, Message: "too many"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.Report(t.Context(), &agentv1.ReportRequest{AgentId: "b"}); fault.ClassOf(err) != fault.Rejected {
		t.Errorf("another agent's id: %v", err)
	}
}

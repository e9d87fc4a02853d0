package rpc

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Reports accepts reports of pods and services from agents. It is declared here because this package
// is its caller.
type Reports interface {
	// Report returns once everything it accepts is stored. rejected is how many pods and services will never
	// be accepted, and why says so. An error is for all of the report; its class decides the status as it does for
	// Controller.Join.
	Report(ctx context.Context, r *agentv1.ReportRequest) (rejected int, why string, err error)
}

// ResourceService serves metaflow.agent.v1.ResourceService. Make it with NewResourceService.
type ResourceService struct {
	agentv1.UnimplementedResourceServiceServer

	reports   Reports
	authorize Authorize
}

// NewResourceService returns a service that hands reports to r, of those who may speak for the agent that they
// name.
func NewResourceService(r Reports, a Authorize) *ResourceService {
	return &ResourceService{reports: r, authorize: a}
}

// Register adds the service to a gRPC server. It is called before the server serves.
func (s *ResourceService) Register(r grpc.ServiceRegistrar) {
	agentv1.RegisterResourceServiceServer(r, s)
}

// Report implements agentv1.ResourceServiceServer.
func (s *ResourceService) Report(ctx context.Context, r *agentv1.ReportRequest) (*agentv1.ReportResponse, error) {
	if err := checkReport(ctx, r); err != nil {
		return nil, status.Error(codes.InvalidArgument, statusText("report: "+err.Error()))
	}
	if err := s.authorize.check(ctx, r.AgentId); err != nil {
		return nil, err
	}
	rejected, why, err := s.reports.Report(ctx, r)
	if err != nil {
		return nil, agentStatus(ctx, err)
	}
	return &agentv1.ReportResponse{Rejected: int64(rejected), ErrorMessage: statusText(why)}, nil
}

// checkReport returns an error if a report as a whole is invalid.
func checkReport(ctx context.Context, r *agentv1.ReportRequest) error {
	if n := proto.Size(r); n > maxReportBytes {
		return fmt.Errorf("%d bytes are more than the %d allowed", n, maxReportBytes)
	}
	errs := []error{checkID("agent_id", r.AgentId), checkText("cluster", r.Cluster), checkText("node", r.Node)}
	if r.Node == "" && (r.Complete || len(r.Pods) > 0) {
		errs = append(errs, errors.New("node: it is empty"))
	}
	if r.TimeUnixNano == 0 {
		errs = append(errs, errors.New("time_unix_nano: it is 0"))
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, id := range md.Get(schema.MetadataAgent) {
		if id != r.AgentId {
			errs = append(errs, errors.New("agent_id: it is not that of the connection"))
		}
	}
	return errors.Join(errs...)
}

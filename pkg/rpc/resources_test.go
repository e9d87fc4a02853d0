package rpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// reportAnswers answers every report alike.
type reportAnswers struct {
	rejected int
	err      error
}

func (r reportAnswers) Report(context.Context, *agentv1.ReportRequest) (rejected int, why string, err error) {
	return r.rejected, "as the test wants it", r.err
}

func TestReports(t *testing.T) {
	request := func(edit func(*agentv1.ReportRequest)) *agentv1.ReportRequest {
		r := &agentv1.ReportRequest{AgentId: "a", Cluster: "prod", Node: "n1", TimeUnixNano: 1, Complete: true}
		if edit != nil {
			edit(r)
		}
		return r
	}
	tests := map[string]struct {
		request *agentv1.ReportRequest
		id      string // of the connection
		answer  error
		want    codes.Code
	}{
		"good":            {request(nil), "a", nil, codes.OK},
		"another's id":    {request(nil), "b", nil, codes.InvalidArgument},
		"no id":           {request(func(r *agentv1.ReportRequest) { r.AgentId = "" }), "", nil, codes.InvalidArgument},
		"no node":         {request(func(r *agentv1.ReportRequest) { r.Node = "" }), "a", nil, codes.InvalidArgument},
		"no time":         {request(func(r *agentv1.ReportRequest) { r.TimeUnixNano = 0 }), "a", nil, codes.InvalidArgument},
		"too long a name": {request(func(r *agentv1.ReportRequest) { r.Cluster = strings.Repeat("x", 1000) }), "a", nil, codes.InvalidArgument},
		"too large": {request(func(r *agentv1.ReportRequest) {
			r.Pods = []*agentv1.Pod{{Uid: strings.Repeat("x", 5<<20)}}
		}), "a", nil, codes.InvalidArgument},
		"services only": {request(func(r *agentv1.ReportRequest) { r.Node, r.Complete = "", false }), "a", nil, codes.OK},
		"not now":       {request(nil), "a", errors.New("kafka is away"), codes.Unavailable},
		"never":         {request(nil), "a", fault.As(fault.Rejected, errors.New("no")), codes.InvalidArgument},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(schema.MetadataAgent, tc.id))
			if tc.id == "" {
				ctx = t.Context()
			}
			resp, err := rpc.NewResourceService(reportAnswers{rejected: 2, err: tc.answer}, nil).Report(ctx, tc.request)
			if status.Code(err) != tc.want {
				t.Fatalf("%v, want %s", err, tc.want)
			}
			if err == nil && (resp.Rejected != 2 || resp.ErrorMessage == "") {
				t.Errorf("answered %v", resp)
			}
		})
	}
}

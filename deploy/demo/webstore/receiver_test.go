package webstore

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // the exporters' compression
)

// span is a received span with attributes of its resource.
type span struct {
	*tracepb.Span
	service  string
	resource map[string]string
}

func (s *span) attribute(key string) string { return texts(s.GetAttributes())[key] }

// receiver is an OTLP receiver that stores everything. answer, if set, decides
// the response to a request.
type receiver struct {
	coltracepb.UnimplementedTraceServiceServer
	endpoint string
	answer   func(request int, spans int64) (rejected int64, err error)

	mu       sync.Mutex
	requests int
	spans    []*span
}

// newReceiver serves until the test ends.
func newReceiver(t *testing.T) *receiver {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{endpoint: l.Addr().String()}
	server := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(server, r)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve receiver: %v", err)
		}
	})
	return r
}

func (r *receiver) Export(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	resp := &coltracepb.ExportTraceServiceResponse{}
	if r.answer != nil {
		rejected, err := r.answer(r.requests, spanCount(req))
		if err != nil {
			return nil, err
		}
		if rejected > 0 {
			resp.PartialSuccess = &coltracepb.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: "as the test wants"}
		}
	}
	for _, rs := range req.GetResourceSpans() {
		resource := texts(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				r.spans = append(r.spans, &span{s, resource["service.name"], resource})
			}
		}
	}
	return resp, nil
}

// all returns what was received. Call it only after the store has closed.
func (r *receiver) all() []*span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spans
}

func texts(attributes []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		out[a.GetKey()] = text(a.GetValue())
	}
	return out
}

func text(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	default:
		return ""
	}
}

package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/metaflowys/metaflow-server/integration/internal/otelcol"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// A record of our topic is a plain OTLP request: the collector's kafkareceiver
// reads the gateway's records, and our writer reads those of the collector's
// kafkaexporter. `make collector` builds the collector.
func TestCollectorReadsAndWritesOurTopic(t *testing.T) {
	collector := collectorProgram(t)
	s := newSite(t, "")
	server, _ := s.serveReady("gateway,writer")

	sink := startSink(t)
	otlp := ports.FreeAddress(t)
	otelcol.Run(t, collector, fmt.Sprintf(`
receivers:
  kafka:
    brokers: [%q]
    group_id: reader
    initial_offset: earliest
    traces: {topics: [metaflow.spans], encoding: otlp_proto}
exporters:
  otlp: {endpoint: %q, tls: {insecure: true}}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {traces: {receivers: [kafka], exporters: [otlp]}}
`, s.kafkaAddr, sink.addr))
	otelcol.Run(t, collector, fmt.Sprintf(`
receivers:
  otlp: {protocols: {grpc: {endpoint: %q}}}
exporters:
  kafka:
    brokers: [%q]
    traces: {topic: metaflow.spans, encoding: otlp_proto}
    partition_traces_by_id: true
    producer: {required_acks: -1, compression: lz4}
    sending_queue: {enabled: false}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {traces: {receivers: [otlp], exporters: [kafka]}}
`, otlp, s.kafkaAddr))

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	toUs := newClient(t, s.grpc, 1)
	toUs.send(ctx, 200)
	toCollector := newClient(t, otlp, 2)
	toCollector.send(ctx, 200)
	server.eventually(time.Minute, exactly(open(t, s.engine.NativeAddr()), toUs.sent+toCollector.sent))
	server.eventually(time.Minute, func() error {
		if n := sink.ids(); n != toUs.sent+toCollector.sent {
			return fmt.Errorf("the collector read %d distinct spans of our topic, want %d", n, toUs.sent+toCollector.sent)
		}
		return nil
	})
}

// collectorProgram returns the collector that `make collector` builds; without
// it the test is skipped.
func collectorProgram(t *testing.T) string {
	t.Helper()
	program := os.Getenv("METAFLOW_TEST_COLLECTOR")
	if program == "" {
		program = filepath.Join(repository(t), ".cache", "collector", "otelcol")
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip("no collector: run `make collector`")
	}
	return program
}

// sink is an OTLP receiver that records the ids of spans.
type sink struct {
	coltracepb.UnimplementedTraceServiceServer
	addr string

	mu   sync.Mutex
	seen map[string]bool
}

func startSink(t *testing.T) *sink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{addr: l.Addr().String(), seen: map[string]bool{}}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	coltracepb.RegisterTraceServiceServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return s
}

func (s *sink) Export(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				s.seen[string(sp.GetTraceId())+string(sp.GetSpanId())] = true
			}
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

func (s *sink) ids() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

package main

import (
	"fmt"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
)

// Every gateway holds the groups to their quotas, whether it has the role control or not,
// and wherever the agent is connected; senders that name no agent have none.
func TestEveryGatewayHoldsQuotas(t *testing.T) {
	kafka := kafkatest.Start(t, broker.Options{}).Addr()
	servers := map[string]*serving{
		"gateway":              serve(t, kafka, func(s *server) { s.Roles = []string{roleGateway} }),
		"gateway with control": serve(t, kafka, func(s *server) { s.Roles = []string{roleGateway, roleControl} }),
	}
	control := serve(t, kafka, func(s *server) { s.Roles = []string{roleControl} })
	if err := join(t.Context(), control.dial(t), "a1", "1"); err != nil {
		t.Fatal(err)
	}
	limit := func(spansPerSecond int) {
		t.Helper()
		text := fmt.Appendf(nil, "outputs: {limits: {spans_per_second: %d}}\n", spansPerSecond)
		if _, err := control.client(t, "").UpdateConfiguration(t.Context(), "default", text, api.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	now := uint64(time.Now().UnixNano())
	var spans []*tracepb.Span
	for i := range byte(100) {
		spans = append(spans, &tracepb.Span{
			TraceId: append(make([]byte, 15), 1), SpanId: append(make([]byte, 7), 1+i), Name: "a", StartTimeUnixNano: now, EndTimeUnixNano: now,
		})
	}
	request := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}}}}}
	limit(1)
	for name, s := range servers {
		client := coltracepb.NewTraceServiceClient(s.dial(t))
		send := func(pairs ...string) error {
			_, err := client.Export(showing(t.Context(), pairs...), request)
			return err
		}
		// The agent and the limit are in flight through Kafka. A request then leaves a debt
		// of more than a minute.
		var refused error
		wait.Until(t, name+" refuses the agent's spans", func() bool {
			refused = send(schema.MetadataAgent, "a1")
			return refused != nil && status.Code(refused) != codes.Unavailable
		})
		if status.Code(refused) != codes.ResourceExhausted || !retryable(refused) {
			t.Errorf("%s: %v, want RESOURCE_EXHAUSTED with RetryInfo", name, refused)
		}
		for _, pairs := range [][]string{nil, {schema.MetadataAgent, "unknown"}} {
			if err := send(pairs...); err != nil {
				t.Errorf("%s: another sender %v: %v", name, pairs, err)
			}
		}
	}
	limit(0)
	for name, s := range servers {
		client := coltracepb.NewTraceServiceClient(s.dial(t))
		wait.Until(t, name+" accepts the agent's spans without a limit", func() bool {
			_, err := client.Export(showing(t.Context(), schema.MetadataAgent, "a1"), request)
			return err == nil
		})
	}
}

func retryable(err error) bool {
	delay, _ := otlptest.RetryDelay(err)
	return delay > 0
}

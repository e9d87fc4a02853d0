package integration

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// exportOne sends a request of one span with one attribute.
func (c *client) exportOne(ctx context.Context, number int, key, value string) {
	c.t.Helper()
	now := uint64(time.Now().UnixNano())
	span := &tracepb.Span{
		TraceId: fmt.Appendf(nil, "%016d", number), SpanId: fmt.Appendf(nil, "%08d", number),
		Name: "op", StartTimeUnixNano: now, EndTimeUnixNano: now + 1000,
		Attributes: []*commonpb.KeyValue{{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}},
	}
	_, err := c.trace.Export(ctx, &coltracepb.ExportTraceServiceRequest{
		ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}}}},
	})
	if err != nil {
		c.t.Fatalf("export: %v", err)
	}
}

// lists returns nil once the list of dead letters contains a text.
func lists(t *testing.T, s *site, text string) func() error {
	return func() error {
		if list := run(t, "deadletter", "list", "--config", s.config); !strings.Contains(list, text) {
			return fmt.Errorf("no letter with %q: %.2000s", text, list)
		}
		return nil
	}
}

// A record of one span is rejected, the table is fixed and the letter is
// replayed, all within the window in which copies are dropped by content.
func TestReplayWithinTheWindow(t *testing.T) {
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	const table = "ALTER TABLE metaflow.spans_local "
	if err := conn.Exec(t.Context(), table+"ADD CONSTRAINT fine CHECK attributes['k'] != '3'"); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, s.grpc, 1)
	for i := range 10 {
		c.exportOne(t.Context(), i, "k", fmt.Sprint(i))
	}
	server.eventually(time.Minute, exactly(conn, 9))
	server.eventually(time.Minute, lists(t, s, "VIOLATED_CONSTRAINT"))
	if err := conn.Exec(t.Context(), table+"DROP CONSTRAINT fine"); err != nil {
		t.Fatal(err)
	}
	run(t, "deadletter", "replay", "--config", s.config)
	server.eventually(time.Minute, exactly(conn, 10))
	run(t, "deadletter", "replay", "--config", s.config, "--again")
	server.eventually(time.Minute, settled(addr))
	if err := exactly(conn, 10)(); err != nil {
		t.Errorf("after a second replay: %v", err)
	}
}

// ClickHouse quotes a value of 600 kB in its error: value and cause together
// exceed the default size of a record. The letter keeps the value, and its
// replay is stored.
func TestLetterWhoseCauseQuotesItsValue(t *testing.T) {
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	const table = "ALTER TABLE metaflow.spans_local "
	if err := conn.Exec(t.Context(), table+"ADD COLUMN my_number UInt16 MATERIALIZED toUInt16(attributes['k'])"); err != nil {
		t.Fatal(err)
	}
	large := make([]byte, 300_000)
	_, _ = rand.Read(large) // never fails
	c := newClient(t, s.grpc, 1)
	c.exportOne(t.Context(), 0, "k", hex.EncodeToString(large))
	good := 0
	server.eventually(time.Minute, func() error {
		good++ // a rejected row waits for an accepted one
		c.exportOne(t.Context(), good, "k", "1")
		return lists(t, s, "Cannot parse string")()
	})
	server.eventually(time.Minute, exactly(conn, good))
	if n := metric(t, addr, "metaflow_writer_dead_letters_truncated_total", ""); n > 0 {
		t.Errorf("%v letters lack their value", n)
	}
	if n := len(server.output.String()); n > 300_000 {
		t.Errorf("the log contains the value: %d bytes", n)
	}
	if err := conn.Exec(t.Context(), table+"DROP COLUMN my_number"); err != nil {
		t.Fatal(err)
	}
	run(t, "deadletter", "replay", "--config", s.config)
	server.eventually(time.Minute, exactly(conn, good+1))
}

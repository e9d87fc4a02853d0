package integration

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/schema"
)

// An operator deletes rows, and the same spans arrive again. Whether they are
// stored depends on how copies are recognized: the same bytes from a client
// within writer.dedup_window are dropped without a lookup, while spans that an
// agent marks as resent are looked up, found missing, stored, and counted as
// inserted once more.
func TestDeletedSpansResent(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	conn := open(t, s.at.ClickHouseNative)
	c := newClient(t, s.at.GRPC, 1)
	const spans = 50
	req := c.gen.Request(spans)
	marked := metadata.AppendToOutgoingContext(t.Context(), schema.MetadataResend, "1", schema.MetadataAgent, "node-1")
	counts := func(inserted, content, id int) func() error {
		return func() error {
			_, metrics, err := get("http://" + s.at.HTTP + "/metrics")
			for _, line := range []string{
				fmt.Sprintf(`metaflow_writer_spans_inserted_total{signal="traces"} %d`, inserted),
				fmt.Sprintf(`metaflow_writer_spans_duplicate_total{by="content",signal="traces"} %d`, content),
				fmt.Sprintf(`metaflow_writer_spans_duplicate_total{by="id",signal="traces"} %d`, id),
			} {
				if err == nil && !strings.Contains(metrics, "\n"+line+"\n") {
					err = fmt.Errorf("/metrics lacks %q: %q", line, regexp.MustCompile(`(?m)^metaflow_writer_spans.*$`).FindAllString(metrics, -1))
				}
			}
			return err
		}
	}
	rows := func(want int) {
		t.Helper()
		if err := exactly(conn, want)(); err != nil {
			t.Error(err)
		}
	}

	if _, err := c.trace.Export(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	s.eventually(time.Minute, counts(spans, 0, 0))
	rows(spans)
	if err := conn.Exec(t.Context(), "DELETE FROM metaflow.spans_local WHERE 1"); err != nil {
		t.Fatal(err)
	}
	rows(0)

	if _, err := c.trace.Export(t.Context(), req); err != nil { // the same bytes
		t.Fatal(err)
	}
	s.eventually(time.Minute, counts(spans, spans, 0))
	rows(0)

	reverse(req) // other bytes
	if _, err := c.trace.Export(marked, req); err != nil {
		t.Fatal(err)
	}
	s.eventually(time.Minute, counts(2*spans, spans, 0))
	rows(spans)

	slices.Reverse(req.ResourceSpans)
	for _, rs := range req.ResourceSpans {
		rs.Resource.Attributes = rs.Resource.Attributes[1:] // other bytes again
	}
	if _, err := c.trace.Export(marked, req); err != nil {
		t.Fatal(err)
	}
	s.eventually(time.Minute, counts(2*spans, spans, spans))
	rows(spans)
}

// reverse reverses the order of a request's spans.
func reverse(req *coltracepb.ExportTraceServiceRequest) {
	slices.Reverse(req.ResourceSpans)
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			slices.SortFunc(ss.Spans, func(a, b *tracepb.Span) int { return slices.Compare(b.SpanId, a.SpanId) })
			ss.Scope = nil
		}
	}
}

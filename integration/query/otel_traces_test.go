package query

import (
	"os"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// Queries of the kinds that tools for the exporter's schema send, with database and times
// filled in. $1 and $2 are the hour; the id is of a trace in it.
var toolQueries = map[string]string{
	// Grafana's ClickHouse plugin, trace search.
	"Grafana searches": `SELECT "TraceId" as traceID, "ServiceName" as serviceName, "SpanName" as operationName, "Timestamp" as startTime, multiply("Duration", 0.000001) as duration
		FROM "metaflow"."otel_traces" WHERE ( Timestamp >= $1 AND Timestamp <= $2 ) AND ( ParentSpanId = '' ) AND ( Duration > 0 ) ORDER BY Timestamp DESC, Duration DESC LIMIT 1000`,
	// Grafana's ClickHouse plugin, trace by id, with the table of times.
	"Grafana shows a trace": `WITH (SELECT any(TraceId) FROM metaflow.otel_traces WHERE Timestamp >= $1 AND Timestamp <= $2 AND SpanName = 'Charge') as trace_id,
		(SELECT min(Start) FROM "metaflow"."otel_traces_trace_id_ts" WHERE TraceId = trace_id) as trace_start, (SELECT max(End) + 1 FROM "metaflow"."otel_traces_trace_id_ts" WHERE TraceId = trace_id) as trace_end
		SELECT "TraceId" as traceID, "SpanId" as spanID, "ParentSpanId" as parentSpanID, "ServiceName" as serviceName, "SpanName" as operationName,
		multiply(toUnixTimestamp64Nano("Timestamp"), 0.000001) as startTime, multiply("Duration", 0.000001) as duration,
		arrayMap(key -> map('key', key, 'value',"SpanAttributes"[key]), mapKeys("SpanAttributes")) as tags,
		arrayMap(key -> map('key', key, 'value',"ResourceAttributes"[key]), mapKeys("ResourceAttributes")) as serviceTags, if("StatusCode" IN ('Error', 'STATUS_CODE_ERROR'), 2, 0) as statusCode
		FROM "metaflow"."otel_traces" WHERE traceID = trace_id AND "Timestamp" >= trace_start AND "Timestamp" <= trace_end LIMIT 1000`,
	// HyperDX, list of spans: its default columns of a trace source.
	"HyperDX lists spans": `SELECT Timestamp, ServiceName AS service, StatusCode AS level, round(Duration / 1e6) AS duration, SpanName FROM metaflow.otel_traces
		WHERE (Timestamp >= $1 AND Timestamp <= $2) AND ((SpanName ILIKE '%Charge%')) ORDER BY Timestamp DESC LIMIT 200 OFFSET 0`,
	// HyperDX, histogram above the list.
	"HyperDX counts spans": `SELECT count() AS n, StatusCode, toStartOfInterval(toDateTime(Timestamp), INTERVAL 1 minute) AS bucket FROM metaflow.otel_traces
		WHERE (Timestamp >= $1 AND Timestamp <= $2) GROUP BY StatusCode, bucket ORDER BY bucket`,
	// HyperDX, names and values of attributes for its filters.
	"HyperDX lists attributes": `SELECT groupUniqArrayArray(20)(mapKeys(SpanAttributes)) AS keys, groupUniqArray(20)(ServiceName) AS services FROM metaflow.otel_traces WHERE (Timestamp >= $1 AND Timestamp <= $2)`,
	// HyperDX, a row with everything.
	"HyperDX shows a span": `SELECT *, "Events.Name", "Events.Attributes", "Links.TraceId" FROM metaflow.otel_traces WHERE (Timestamp >= $1 AND Timestamp <= $2) AND SpanName = 'Charge' LIMIT 1`,
}

// The view otel_traces answers the queries of tools that read the exporter's tables.
func TestOtelTracesAnswersTools(t *testing.T) {
	_, db := reader(t, config())
	for name, sql := range toolQueries {
		rows := 0
		err := db.Query(t.Context(), sql, func(func(...any) error) error { rows++; return nil }, shop.Start, shop.End)
		if err != nil || rows == 0 {
			t.Errorf("%s: %d rows, %v", name, rows, err)
		}
	}
}

// The views otel_traces and otel_traces_trace_id_ts have the columns and types of the tables
// that the collector's exporter creates. The DDL is that of v0.161.0; up to v0.165.1 only
// its codecs have changed.
func TestOtelTracesHasTheExportersColumns(t *testing.T) {
	ddl, err := os.ReadFile("../bench/queries/otel_traces.sql")
	if err != nil {
		t.Fatal(err)
	}
	conn := chtest.Open(t, engine)
	for statement := range strings.SplitSeq(string(ddl), ";\n") {
		if err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var missing []string
	var compared uint64
	const compare = `SELECT groupArrayIf(concat(table, '.', name, ' ', type), (table, name, type) NOT IN (SELECT table, name, type FROM system.columns WHERE database = 'metaflow')), count()
		FROM system.columns WHERE database = 'otel' AND table NOT LIKE '%mv'`
	if err := conn.QueryRow(t.Context(), compare).Scan(&missing, &compared); err != nil {
		t.Fatal(err)
	}
	if len(missing) > 0 || compared != 25 {
		t.Errorf("of %d columns of the exporter the views lack, or have by another type: %q", compared, missing)
	}
}

package clickhouse

import (
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
	"github.com/metaflowys/metaflow-server/pkg/otlptest"
)

// The decoder's columns are the table's: each has its place and its type.
func TestDecodedSpansFitTheTable(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	ins := newInserter(t, cfg)
	g := otlptest.New(1, otlptest.Options{Start: day(1)})
	block := columns.NewSpans()
	const rows = 5000
	if _, err := block.Append(g.RequestBytes(rows), columns.Source{Agent: "agent-1", Window: otlp.WindowAt(time.Now(), 168*time.Hour, time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ins.Insert(t.Context(), 0, columns.TableSpans, "token", block.Input(), block.Rows()); err != nil {
			t.Fatal(err)
		}
	}
	got := queryText(t, d, `SELECT count(), uniqExact(span_id), countIf(agent_id = 'agent-1'), countIf(resource_attributes['service.name'] = service_name),
		countIf(end_time >= start_time), countIf(match(trace_id, '^[0-9a-f]{32}$')) FROM `+cfg.Database+".spans")
	if want := "5000\t5000\t5000\t5000\t5000\t5000"; got != want {
		t.Errorf("stored %q, want %q", got, want)
	}
	sent := map[string]bool{}
	for _, c := range block.Input() {
		sent[c.Name] = true
	}
	for _, name := range columnsOf(t, d, columns.TableSpans) {
		if !sent[name] {
			t.Errorf("column %s of the table is never filled", name)
		}
	}
}

func columnsOf(t *testing.T, d *DB, table string) []string {
	t.Helper()
	var names []string
	err := d.conn.QueryRow(t.Context(), "SELECT groupArray(name) FROM system.columns WHERE database = $1 AND table = $2",
		d.cfg.Database, table).Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

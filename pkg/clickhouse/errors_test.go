package clickhouse

import (
	"strings"
	"testing"
)

// ClickHouse's CANNOT_PARSE_TEXT repeats the whole value. The error keeps its beginning
// and end.
func TestTextOfARefusal(t *testing.T) {
	d := migrated(t, testConfig(t))
	table := d.cfg.Database + ".spans_local"
	mustExec(t, d, "ALTER TABLE "+table+" ADD COLUMN size UInt16 MATERIALIZED toUInt16(attributes['body'])")
	err := d.exec(t.Context(), "INSERT INTO "+table+" (trace_id, span_id, start_time, name, attributes) "+
		"SELECT repeat('0', 31) || '1', repeat('0', 15) || '1', now64(9, 'UTC'), 'n', map('body', hex(randomString(300000)))")
	if _, text, _ := exception(err); len(text) < 600_000 {
		t.Fatalf("ClickHouse does not repeat the value: %.3000v", err)
	}
	text := err.Error()
	if len(text) > messageBytes+500 || !strings.Contains(text, "CANNOT_PARSE_TEXT") || !strings.Contains(text, "bytes left out") {
		t.Errorf("error of %d bytes: %.3000s", len(text), text)
	}
}

package clickhouse

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRetentionReplacesOnlyItsRule(t *testing.T) {
	const month, week = "toDateTime(t) + toIntervalSecond(2592000)", "toDateTime(t) + toIntervalSecond(604800)"
	tests := map[string]struct{ ttl, retention, want string }{
		"alone":                      {month, week, week},
		"the same":                   {month, month, month},
		"none yet":                   {"", week, week},
		"none any more":              {month, "", ""},
		"another expression":         {"t + toIntervalDay(3)", week, week},
		"before a move":              {month + ", t + toIntervalDay(2) TO VOLUME 'cold'", week, week + ", t + toIntervalDay(2) TO VOLUME 'cold'"},
		"after a recompression":      {"t RECOMPRESS CODEC(T64, ZSTD(17)), " + month, week, "t RECOMPRESS CODEC(T64, ZSTD(17)), " + week},
		"beside a move alone":        {"t TO DISK 'a, b'", week, week + ", t TO DISK 'a, b'"},
		"a move stays":               {month + ", t TO DISK IF EXISTS 'a\\', b'", "", "t TO DISK IF EXISTS 'a\\', b'"},
		"deleting some rows":         {"t + toIntervalDay(1) WHERE k = 'x, y', " + month, week, "t + toIntervalDay(1) WHERE k = 'x, y', " + week},
		"rolling up":                 {"t GROUP BY a, b SET c = max(c), d = sum(d), " + month, week, "t GROUP BY a, b SET c = max(c), d = sum(d), " + week},
		"a function called the same": {"if(WHERE(t), t, t), t RECOMPRESS CODEC(ZSTD(1))", week, week + ", t RECOMPRESS CODEC(ZSTD(1))"},
		"broken":                     {"t 'no end, (", week, week},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := withRetention(tc.ttl, tc.retention); got != tc.want {
				t.Errorf("withRetention(%q, %q) = %q, want %q", tc.ttl, tc.retention, got, tc.want)
			}
		})
	}
}

// What an operator gave a table survives every start and every migration, with
// whatever retention the server is configured.
func TestOperatorsChangesSurvive(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	table := cfg.Database + ".spans_local"
	const operators = `toDateTime(start_time) + toIntervalDay(2) RECOMPRESS CODEC(ZSTD(6)), toDateTime(start_time) + toIntervalDay(1) TO DISK 'default', ` +
		`toDateTime(start_time) + toIntervalHour(1) WHERE kind = 'internal'`
	for _, change := range []string{
		"MODIFY TTL toDateTime(start_time) + toIntervalDay(30), " + operators,
		"ADD COLUMN team LowCardinality(String) DEFAULT 'none'",
		"ADD INDEX durations duration_ns TYPE minmax GRANULARITY 1",
		"ADD PROJECTION by_service (SELECT service_name, count() GROUP BY service_name)",
		"MODIFY SETTING min_bytes_for_wide_part = 12345678, merge_with_ttl_timeout = 7200",
		"MODIFY COMMENT 'ours'",
	} {
		mustExec(t, d, "ALTER TABLE "+table+" "+change)
	}
	want := queryText(t, d, "SHOW CREATE TABLE "+table)
	for _, s := range []struct {
		keep time.Duration
		rule string // that deletes
	}{
		{time.Hour, "toDateTime(start_time) + toIntervalSecond(3600), "},
		{0, ""},
		{48 * time.Hour, "toDateTime(start_time) + toIntervalSecond(172800), "},
	} {
		for range 2 { // a change, and a start that changes nothing
			if err := d.Migrate(t.Context(), Retention{Spans: s.keep}); err != nil {
				t.Fatal(err)
			}
			if err := d.EnsureTableSettings(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
		}
		want := strings.Replace(want, "TTL toDateTime(start_time) + toIntervalDay(30), ", "TTL "+s.rule, 1)
		want = strings.ReplaceAll(want, "non_replicated_deduplication_window = 10000", "non_replicated_deduplication_window = 60000")
		got := queryText(t, d, "SHOW CREATE TABLE "+table)
		for _, setting := range []string{", fsync_after_insert = 1", ", fsync_part_directory = 1"} {
			got = strings.Replace(got, setting, "", 1)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("kept for %s (-want +got):\n%s", s.keep, diff)
		}
	}
	// Views and writers do not mind the column.
	block := spanBlock(10, func(int) time.Time { return day(0) })
	if err := newInserter(t, cfg).Insert(t.Context(), 0, "spans_local", "token", block, 10); err != nil {
		t.Fatal(err)
	}
	if got := queryText(t, d, "SELECT count(), countIf(team = 'none') FROM "+table); got != "10\t10" {
		t.Errorf("rows: %q", got)
	}
}

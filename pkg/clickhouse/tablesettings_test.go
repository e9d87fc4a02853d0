package clickhouse

import (
	"errors"
	"strings"
	"testing"
)

func TestTableSettings(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	const partitions = 96
	err := d.CheckTableSettings(t.Context(), partitions)
	if !errors.Is(err, ErrTableSettings) || !strings.Contains(err.Error(), "spans_local MODIFY SETTING non_replicated_deduplication_window = 57600, fsync_after_insert = 1") {
		t.Errorf("error %v", err)
	}
	// An operator has raised one of the settings.
	mustExec(t, d, "ALTER TABLE "+cfg.Database+".flows_local MODIFY SETTING non_replicated_deduplication_window = 90000")
	for range 2 { // as several servers do
		if err := d.EnsureTableSettings(t.Context(), partitions); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.CheckTableSettings(t.Context(), partitions); err != nil {
		t.Error(err)
	}
	for table, want := range map[string]int64{"spans_local": 57600, "flows_local": 90000} {
		engines, err := d.engines(t.Context(), table)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := settingIn(engines[0], "non_replicated_deduplication_window"); got != want {
			t.Errorf("%s remembers %d blocks, want %d", table, got, want)
		}
	}
	if err := d.CheckTableSettings(t.Context(), partitions+1); !errors.Is(err, ErrTableSettings) {
		t.Errorf("error %v", err)
	}
	cfg.SyncInserts = false
	if err := openDB(t, cfg).CheckTableSettings(t.Context(), partitions); err != nil {
		t.Error(err)
	}
}

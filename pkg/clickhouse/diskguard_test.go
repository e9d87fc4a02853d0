package clickhouse

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestDiskGuardChooses(t *testing.T) {
	now := time.Date(2026, 3, 10, 23, 59, 0, 0, time.UTC)
	a, b, cold := disk{"a", "default"}, disk{"b", "default"}, disk{"a", "cold"}
	space := func(d disk, used, leaving uint64) diskSpace {
		return diskSpace{disk: d, total: 100, free: 100 - used, leaving: leaving}
	}
	flows := func(id string, on ...disk) tableDay { return tableDay{table: "flows_local", id: id, bytes: 5, on: on} }
	spans := func(id string, on ...disk) tableDay { return tableDay{table: "spans_local", id: id, bytes: 7, on: on} }
	usual := []tableDay{flows("20260308", a, b), flows("20260309", a, b), flows("20260310", a, b), spans("20260301", a, b), spans("20260309", a, b), spans("20260310", a, b)}
	both := []string{"flows_local", "spans_local"}
	tests := map[string]struct {
		disks     []diskSpace
		days      []tableDay
		tables    []string
		today     string
		day, full string
		err       string
	}{
		"room":                      {disks: []diskSpace{space(a, 80, 0)}, days: usual, tables: both},
		"the oldest flows":          {disks: []diskSpace{space(a, 81, 0)}, days: usual, tables: both, day: "flows_local 20260308", full: "a/default"},
		"on another node":           {disks: []diskSpace{space(a, 10, 0), space(b, 90, 0)}, days: usual, tables: both, day: "flows_local 20260308", full: "b/default"},
		"the fullest is named":      {disks: []diskSpace{space(a, 85, 0), space(b, 90, 0)}, days: usual, tables: both, day: "flows_local 20260308", full: "b/default"},
		"spans first":               {disks: []diskSpace{space(a, 81, 0)}, days: usual, tables: []string{"spans_local", "flows_local"}, day: "spans_local 20260301", full: "a/default"},
		"no flows left":             {disks: []diskSpace{space(a, 81, 0)}, days: usual[2:], tables: both, day: "spans_local 20260301", full: "a/default"},
		"only flows may go":         {disks: []diskSpace{space(a, 81, 0)}, days: usual[2:], tables: both[:1], err: "no day before today"},
		"only today":                {disks: []diskSpace{space(a, 99, 0)}, days: []tableDay{flows("20260310", a), spans("20260310", a), spans("20260311", a)}, tables: both, err: "99.0% of the disk default of a is used"},
		"a node's clock is behind":  {disks: []diskSpace{space(a, 81, 0)}, days: usual[1:3], tables: both, today: "20260309", err: "no day before today"},
		"a node's clock is ahead":   {disks: []diskSpace{space(a, 81, 0)}, days: usual[2:3], tables: both, today: "20260311", err: "no day before today"},
		"dropped parts go soon":     {disks: []diskSpace{space(a, 95, 15)}, days: usual, tables: both},
		"dropped parts, not enough": {disks: []diskSpace{space(a, 95, 14)}, days: usual, tables: both, day: "flows_local 20260308", full: "a/default"},
		"more leaves than was used": {disks: []diskSpace{space(a, 95, 96)}, days: usual, tables: both},
		"a disk of others":          {disks: []diskSpace{space(a, 50, 0), space(cold, 99, 0)}, days: usual, tables: both},
		"another disk is full":      {disks: []diskSpace{space(a, 50, 0), space(cold, 99, 0)}, days: append([]tableDay{spans("20260228", cold), spans("20260302", a, cold)}, usual...), tables: both, day: "spans_local 20260228", full: "a/cold"},
		"a disk without a bound":    {disks: []diskSpace{{disk: a, total: 1<<64 - 1, free: 1<<64 - 1}}, days: usual, tables: both},
		"a disk without space":      {disks: []diskSpace{{disk: a}}, days: usual, tables: both},
		"no rows":                   {disks: []diskSpace{space(a, 99, 0)}, tables: both},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if tc.today == "" {
				tc.today = "20260310"
			}
			day, full, err := diskUsage{disks: tc.disks, days: tc.days, today: tc.today}.choose(0.8, tc.tables, now)
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if got := strings.TrimSpace(day.table + " " + day.id); got != tc.day {
				t.Errorf("dropped %q, want %q", got, tc.day)
			}
			if got := full.node + "/" + full.name; tc.full != "" && got != tc.full {
				t.Errorf("because of %s, want %s", got, tc.full)
			}
		})
	}
}

// The guard drops one day at each check, the oldest flows first, and leaves today's rows and
// those of tomorrow.
func TestDiskGuard(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	for n := -1; n <= 3; n++ {
		insertRows(t, d, "flows_local", sqlRow{"time": sqlDay(n)}, sqlRow{"time": sqlDay(n)})
		if n != 2 {
			insertRows(t, d, "spans_local", sqlRow{"start_time": sqlDay(n)})
		}
	}
	usage, err := d.diskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	used := usage.disks[0].used()
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	keep := DefaultRetention()
	keep.DiskGuard = 99
	g := NewDiskGuard(keep, d, slog.New(slog.NewTextHandler(&log, nil)), reg)
	const all = "flows -1 0 1 2 3, spans -1 0 1 3"
	g.limit = used + (1-used)/2
	if err := g.check(t.Context()); err != nil || daysOf(t, d) != all {
		t.Fatalf("below the limit: %v, left %s", err, daysOf(t, d))
	}
	g.limit = used / 1000 // whatever else ClickHouse is about to remove
	for _, want := range []string{
		"flows -1 0 1 2, spans -1 0 1 3", "flows -1 0 1, spans -1 0 1 3", "flows -1 0, spans -1 0 1 3", "flows -1 0, spans -1 0 1", "flows -1 0, spans -1 0",
	} {
		if err := g.check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := daysOf(t, d); got != want {
			t.Fatalf("left %s, want %s", got, want)
		}
	}
	for range 2 {
		if err := g.check(t.Context()); err == nil || !strings.Contains(err.Error(), "no day before today") {
			t.Errorf("with today's rows alone: %v", err)
		}
	}
	if got := daysOf(t, d); got != "flows -1 0, spans -1 0" {
		t.Errorf("left %s", got)
	}
	if flows, spans := testutil.ToFloat64(g.days.WithLabelValues("flows_local")), testutil.ToFloat64(g.days.WithLabelValues("spans_local")); flows != 3 || spans != 2 {
		t.Errorf("counted %v days of flows and %v of spans", flows, spans)
	}
	if n := testutil.ToFloat64(g.bytes.WithLabelValues("flows_local")); n < 100 {
		t.Errorf("counted %v bytes of flows", n)
	}
	if n := testutil.CollectAndCount(g.used); n != 1 {
		t.Errorf("%d disks have a used share", n)
	}
	oldest := day(3).Format("20060102")
	if lines := strings.Count(log.String(), "level=WARN"); lines != 5 || !strings.Contains(log.String(), "table=flows_local partition="+oldest+" bytes=") {
		t.Errorf("log of %d warnings:\n%s", lines, log.String())
	}
}

// Parts that ClickHouse no longer reads, but has not removed, count as free.
func TestDiskGuardCountsLeavingParts(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "ALTER TABLE "+cfg.Database+".spans_local MODIFY SETTING old_parts_lifetime = 100000")
	for range 2 {
		insertRows(t, d, "spans_local", sqlRow{"start_time": sqlDay(1)})
	}
	mustExec(t, d, "OPTIMIZE TABLE "+cfg.Database+".spans_local FINAL")
	var usage diskUsage
	wait.Until(t, "the merged parts are leaving", func() bool {
		var err error
		if usage, err = d.diskUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
		return usage.disks[0].leaving > 100
	})
	if len(usage.days) != 1 || usage.days[0].bytes < 100 || usage.days[0].id != day(1).Format("20060102") {
		t.Errorf("%+v", usage.days)
	}
	if want := queryText(t, d, "SELECT formatDateTime(now('UTC'), '%Y%m%d')"); usage.today != want {
		t.Errorf("today is %s, want %s", usage.today, want)
	}
}

// A server's bound for partitions, 50 GB by default, does not stop the guard.
func TestDiskGuardDropsLargeDays(t *testing.T) {
	e := startEngine(t, chengine.Options{DataDir: t.TempDir(), ExtraConfig: "<max_partition_size_to_drop>1</max_partition_size_to_drop>"})
	cfg := testConfig(t)
	cfg.Addresses, cfg.Username = []string{e.NativeAddr()}, "default"
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	insertRows(t, d, "flows_local", sqlRow{"time": sqlDay(1)}, sqlRow{"time": sqlDay(0)})
	id := day(1).Format("20060102")
	if err := d.exec(t.Context(), "ALTER TABLE "+cfg.Database+".flows_local DROP PARTITION ID '"+id+"'"); err == nil {
		t.Fatal("the server has no bound")
	}
	if err := d.dropDay(t.Context(), tableDay{table: "flows_local", id: id}); err != nil {
		t.Error(err)
	}
	if got := queryText(t, d, "SELECT count(), countIf(toDate(time) = '"+day(0).Format(time.DateOnly)+"') FROM "+cfg.Database+".flows_local"); got != "1\t1" {
		t.Errorf("left %q", got)
	}
}

func sqlDay(n int) string { return "'" + day(n).Format(time.DateTime) + "'" }

// daysOf returns the days, counted back from today, of which the tables have rows.
func daysOf(t *testing.T, d *DB) string {
	t.Helper()
	ages := func(table, column string) string {
		return queryText(t, d, "SELECT arrayStringConcat(groupArray(toString(age)), ' ') FROM (SELECT DISTINCT toDate('"+day(0).Format(time.DateOnly)+"') - toDate("+column+") AS age FROM "+d.cfg.Database+"."+table+" ORDER BY age)")
	}
	return "flows " + ages("flows_local", "time") + ", spans " + ages("spans_local", "start_time")
}

// checkDisksOfEveryShard checks that the guard sees each node's disks and days.
func checkDisksOfEveryShard(t *testing.T, cfg Config) {
	t.Helper()
	d := openDB(t, cfg)
	d.topology = migrations.PerShard
	usage, err := d.diskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := make(map[string]bool)
	for _, s := range usage.disks {
		nodes[s.node] = true
	}
	var on int
	for _, day := range usage.days {
		on = max(on, len(day.on))
	}
	if diff := cmp.Diff([]int{2, 2}, []int{len(nodes), on}); diff != "" {
		t.Errorf("nodes, and nodes with the same day (-want +got):\n%s\n%+v", diff, usage)
	}
}

func TestRetentionConfig(t *testing.T) {
	if err := DefaultRetention().Validate(); err != nil {
		t.Error(err)
	}
	for want, keep := range map[string]Retention{
		"spans: -1ns is negative":                              {Spans: -1},
		"disk_guard: 100 is not between 0 and 99":              {DiskGuard: 100},
		"disk_guard_order: must not be empty":                  {DiskGuard: 80},
		`disk_guard_order[0]: "pods" is not flows or spans`:    {DiskGuardOrder: []string{"pods"}},
		`disk_guard_order[1]: "flows" is not flows or spans, `: {DiskGuardOrder: []string{"flows", "flows"}},
	} {
		if err := keep.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", keep, err, want)
		}
	}
}

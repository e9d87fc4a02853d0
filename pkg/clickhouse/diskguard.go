package clickhouse

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// guardInterval is the time between two checks of the disks. A check drops at most one
// day, so that an operator can act before the next one.
const guardInterval = time.Minute

// guardedTables are the tables whose days the disk guard may drop, by their names in the
// configuration.
var guardedTables = map[string]string{"flows": columns.TableFlows, "spans": columns.TableSpans}

// DiskGuard drops the oldest days of tables while a disk of ClickHouse is too full. Run it
// in one replica. Two at once may both drop the same day, which does no harm.
type DiskGuard struct {
	limit  float64  // share of a disk
	tables []string // in the order in which they lose days
	db     *DB
	log    *slog.Logger

	used     *prometheus.GaugeVec
	days     *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	failures prometheus.Counter
}

// NewDiskGuard returns a guard for a valid configuration whose DiskGuard is not 0. Its
// metrics are registered with reg. It starts nothing.
func NewDiskGuard(cfg Retention, db *DB, log *slog.Logger, reg prometheus.Registerer) *DiskGuard {
	f := promauto.With(reg)
	options := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Name: name, Help: help}
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts(options(name, help)), []string{"table"})
	}
	g := &DiskGuard{
		limit: float64(cfg.DiskGuard) / 100, db: db, log: log,
		used: f.NewGaugeVec(prometheus.GaugeOpts(options("metaflow_disk_guard_used_ratio",
			"Used share of a disk that holds spans or flows, without the parts that ClickHouse will remove soon.")), []string{"node", "disk"}),
		days:     counter("metaflow_disk_guard_dropped_partitions_total", "Days of a table that were dropped because a disk was too full."),
		bytes:    counter("metaflow_disk_guard_dropped_bytes_total", "Bytes on disk of the days that were dropped because a disk was too full, on all nodes."),
		failures: f.NewCounter(prometheus.CounterOpts(options("metaflow_disk_guard_failures_total", "Failed checks of the disks: ClickHouse gave an error, or a disk is too full and holds no day that may be dropped."))),
	}
	for _, name := range cfg.DiskGuardOrder {
		table := guardedTables[name]
		g.tables = append(g.tables, table)
		// An alert on an increase needs the value before the first one.
		g.days.WithLabelValues(table)
		g.bytes.WithLabelValues(table)
	}
	return g
}

// Run checks the disks until ctx ends.
func (g *DiskGuard) Run(ctx context.Context) {
	defer g.used.Reset() // another replica has the current values
	retry.Every(ctx, guardInterval, func() {
		if err := g.check(ctx); err != nil && ctx.Err() == nil {
			g.failures.Inc()
			g.log.Warn("the disk guard cannot free space", slog.Any("error", err))
		}
	})
}

// check drops one day if a disk is too full. ClickHouse removes the files of dropped parts
// later; meanwhile check counts them as free.
func (g *DiskGuard) check(ctx context.Context) error {
	usage, err := g.db.diskUsage(ctx)
	if err != nil {
		g.used.Reset() // old numbers would look current
		return err
	}
	g.used.Reset()
	for _, d := range usage.disks {
		if usage.holds(d.disk) {
			g.used.WithLabelValues(d.node, d.name).Set(d.used())
		}
	}
	day, full, err := usage.choose(g.limit, g.tables, time.Now())
	if err != nil || day.id == "" {
		return err
	}
	if err := g.db.dropDay(ctx, day); err != nil {
		return err
	}
	g.days.WithLabelValues(day.table).Inc()
	g.bytes.WithLabelValues(day.table).Add(float64(day.bytes))
	g.log.Warn("the disk guard dropped the oldest day of a table, because a disk of ClickHouse is too full",
		slog.String("table", day.table), slog.String("partition", day.id), slog.Uint64("bytes", day.bytes), slog.String("node", full.node),
		slog.String("disk", full.name), slog.String("used", percent(full.used())), slog.String("limit", percent(g.limit)))
	return nil
}

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }

// disk is one disk of one node.
type disk struct{ node, name string }

// diskSpace is the space of a disk, in bytes.
type diskSpace struct {
	disk
	total, free uint64
	leaving     uint64 // in parts that ClickHouse no longer reads and will remove
}

// used returns the share of a disk that is used. An object storage has no bound, and so 0.
func (d diskSpace) used() float64 {
	if d.total == 0 || d.free+d.leaving >= d.total {
		return 0
	}
	return float64(d.total-d.free-d.leaving) / float64(d.total)
}

// tableDay is a day of a table: the partition with the id YYYYMMDD. It may lie on several disks.
type tableDay struct {
	table, id string
	bytes     uint64 // on all disks
	on        []disk
}

// diskUsage is what the disks of all nodes hold.
type diskUsage struct {
	disks []diskSpace
	days  []tableDay
	today string // the earliest date of any node, as YYYYMMDD
}

// holds reports whether a disk holds rows of a guarded table.
func (u diskUsage) holds(d disk) bool {
	return slices.ContainsFunc(u.days, func(day tableDay) bool { return slices.Contains(day.on, d) })
}

// choose returns the day to drop and the disk because of which, or no day if no disk is
// fuller than limit. All days of a table go before those of the tables after it. Only days go
// that lie on such a disk, and neither today's, by the clock of any node or of now, nor later
// ones. It is an error if no such day is left.
func (u diskUsage) choose(limit float64, tables []string, now time.Time) (tableDay, diskSpace, error) {
	var full []diskSpace
	for _, d := range u.disks {
		if d.used() > limit && u.holds(d.disk) {
			full = append(full, d)
		}
	}
	if len(full) == 0 {
		return tableDay{}, diskSpace{}, nil
	}
	slices.SortStableFunc(full, func(a, b diskSpace) int { return cmp.Compare(b.used(), a.used()) })
	today := min(u.today, now.UTC().Format("20060102"))
	for _, table := range tables {
		var oldest tableDay
		for _, d := range u.days {
			if d.table == table && d.id < today && d.onAny(full) && (oldest.id == "" || d.id < oldest.id) {
				oldest = d
			}
		}
		if oldest.id != "" {
			i := slices.IndexFunc(full, func(d diskSpace) bool { return slices.Contains(oldest.on, d.disk) })
			return oldest, full[i], nil
		}
	}
	return tableDay{}, diskSpace{}, fmt.Errorf("%s of the disk %s of %s is used, more than retention.disk_guard (%s), but it holds no day before today that may be dropped",
		percent(full[0].used()), full[0].name, full[0].node, percent(limit))
}

func (d tableDay) onAny(disks []diskSpace) bool {
	return slices.ContainsFunc(disks, func(s diskSpace) bool { return slices.Contains(d.on, s.disk) })
}

// nodeName identifies a node: several may run on one host.
const nodeName = "concat(hostName(), ':', toString(tcpPort()))"

// diskUsage asks every node that is up. It reads the parts before the disks: a part that is
// removed in between counts as free twice, until the next check, and never as used.
func (d *DB) diskUsage(ctx context.Context) (diskUsage, error) {
	var u diskUsage
	leaving := make(map[disk]uint64)
	err := d.Query(ctx, "SELECT "+nodeName+" AS node, disk_name, if(database = $1 AND active AND rows > 0, table, '') AS of, if(of = '', '', partition_id) AS day, "+
		"sumIf(bytes_on_disk, of != '') AS held, sumIf(bytes_on_disk, NOT active) AS leaving FROM "+d.system("parts")+
		" GROUP BY node, disk_name, of, day ORDER BY of, day, node, disk_name"+d.skipUnavailable(), func(scan func(...any) error) error {
		var on disk
		var table, id string
		var held, gone uint64
		if err := scan(&on.node, &on.name, &table, &id, &held, &gone); err != nil {
			return err
		}
		leaving[on] += gone
		if !isGuarded(table) {
			return nil
		}
		last := len(u.days) - 1
		if last < 0 || u.days[last].table != table || u.days[last].id != id {
			u.days = append(u.days, tableDay{table: table, id: id})
			last++
		}
		u.days[last].bytes += held
		u.days[last].on = append(u.days[last].on, on)
		return nil
	}, d.cfg.Database)
	if err != nil {
		return u, fmt.Errorf("read system.parts: %w", err)
	}
	err = d.Query(ctx, "SELECT "+nodeName+", name, total_space, free_space, formatDateTime(now('UTC'), '%Y%m%d') FROM "+d.system("disks")+d.skipUnavailable(), func(scan func(...any) error) error {
		var s diskSpace
		var today string
		if err := scan(&s.node, &s.name, &s.total, &s.free, &today); err != nil {
			return err
		}
		s.leaving = leaving[s.disk]
		u.disks = append(u.disks, s)
		if u.today == "" || today < u.today {
			u.today = today
		}
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("read system.disks: %w", err)
	}
	return u, nil
}

func isGuarded(table string) bool {
	for _, guarded := range guardedTables {
		if table == guarded {
			return true
		}
	}
	return false
}

// dropDay drops a day of a table on every node. If the statement fails at a node that is
// down, but no other node has the day any more, that is a success.
func (d *DB) dropDay(ctx context.Context, dropped tableDay) error {
	statement := "ALTER TABLE " + d.cfg.Database + "." + dropped.table + d.params(Retention{}).OnCluster() + " DROP PARTITION ID " + quote(dropped.id)
	// By default a server drops no partition above 50 GB. Older ones have no such setting for
	// a query; there the operator changes it in the server's configuration.
	var settable uint64
	err := d.Query(ctx, "SELECT count() FROM system.settings WHERE name = 'max_partition_size_to_drop'", func(scan func(...any) error) error { return scan(&settable) })
	if err != nil {
		return fmt.Errorf("look for the setting max_partition_size_to_drop: %w", err)
	}
	if settable > 0 {
		statement += " SETTINGS max_partition_size_to_drop = 0"
	}
	failed := d.exec(ctx, statement)
	if failed == nil {
		return nil
	}
	failed = fmt.Errorf("drop %s of %s.%s: %w", dropped.id, d.cfg.Database, dropped.table, failed)
	left, err := d.diskUsage(ctx)
	if err != nil || slices.ContainsFunc(left.days, func(o tableDay) bool { return o.table == dropped.table && o.id == dropped.id }) {
		return failed
	}
	d.log.Warn("a day was dropped, but not every node confirms it", slog.Any("error", failed))
	return nil
}

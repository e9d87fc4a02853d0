package clickhouse

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/migrations"
)

// Retention is how long each kind of row is kept. Zero keeps it for ever.
type Retention struct {
	// Spans: how long a span is kept, from its start; 0 keeps it forever.
	Spans time.Duration `mapstructure:"spans" doc:"how long a span is kept, from its start; 0 keeps it forever"`
	// Flows: how long flow data is kept, from the end of a row's interval;
	// 0 keeps it forever.
	Flows time.Duration `mapstructure:"flows" doc:"how long flow data is kept, from the end of a row's interval; 0 keeps it forever"`
	// DiskGuard: percentage of a disk of ClickHouse above which the oldest
	// days go before their time, never today's; 0 turns the guard off.
	DiskGuard int `mapstructure:"disk_guard" doc:"percentage of a disk of ClickHouse above which the oldest days go before their time, never today's; 0 turns the guard off"`
	// DiskGuardOrder: tables that may lose days to disk_guard, flows and
	// spans: all days of the first go before those of the next.
	DiskGuardOrder []string `mapstructure:"disk_guard_order" doc:"tables that may lose days to disk_guard, flows and spans: all days of the first go before those of the next"`
}

// DefaultRetention keeps spans for 30 days and flow data for 7, without a disk guard.
func DefaultRetention() Retention {
	return Retention{Spans: 30 * 24 * time.Hour, Flows: 7 * 24 * time.Hour, DiskGuardOrder: []string{"flows", "spans"}}
}

// Validate reports every problem at once, each by its key.
func (r Retention) Validate() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Spans < 0 {
		problem("spans: %s is negative", r.Spans)
	}
	if r.Flows < 0 {
		problem("flows: %s is negative", r.Flows)
	}
	if r.DiskGuard < 0 || r.DiskGuard > 99 {
		problem("disk_guard: %d is not between 0 and 99", r.DiskGuard)
	}
	if r.DiskGuard > 0 && len(r.DiskGuardOrder) == 0 {
		problem("disk_guard_order: must not be empty while disk_guard is set")
	}
	for i, name := range r.DiskGuardOrder {
		if guardedTables[name] == "" || slices.Contains(r.DiskGuardOrder[:i], name) {
			problem("disk_guard_order[%d]: %q is not flows or spans, each at most once", i, name)
		}
	}
	return errors.Join(errs...)
}

// MigrationStatus is one migration and whether it is in force.
type MigrationStatus struct {
	Version uint32
	Name    string
	Applied bool
	At      time.Time // when it was last run in either direction; zero if never
}

// recordTable is where every migration that was run is recorded.
const recordTable = "schema_migrations"

// ddlTimeout bounds one statement on all nodes of a cluster: long enough for a node to
// restart meanwhile. ddlGrace is how much longer the answer may take, which names the nodes
// that are missing.
const (
	ddlTimeout = 3 * time.Minute
	ddlGrace   = 30 * time.Second
)

// Migrate brings the tables up to the newest version, the views into the form
// of this program, and the tables to the retention. Several processes may do so
// at once, and writers go on inserting meanwhile. The views of a database that
// is ahead of this program stay as they are. It waits for nothing: call Wait
// before.
//
// Nodes of a cluster that lack tables get them, but what CompleteNodes removes
// from Keeper stays: a server that starts cannot tell lost data from a volume
// that is not mounted yet.
func (d *DB) Migrate(ctx context.Context, keep Retention) error {
	p, err := d.paramsOfServer(ctx, keep)
	if err != nil {
		return err
	}
	all, err := migrations.Render(p)
	if err != nil {
		return err
	}
	if _, err := d.completeNodes(ctx, false); err != nil {
		d.log.Warn("nodes of the cluster lack tables", slog.Any("error", err))
	}
	if err := d.bootstrap(ctx, p); err != nil {
		return err
	}
	applied, err := d.applied(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if applied[m.Version].Applied {
			continue
		}
		if err := d.step(ctx, m, true); err != nil {
			return err
		}
	}
	if newest(applied) <= migrations.Latest() {
		views, err := migrations.Views(p, migrations.Latest())
		if err != nil {
			return err
		}
		if err := d.replaceViews(ctx, views); err != nil {
			return err
		}
	}
	return d.retain(ctx, p)
}

// MigrateDown takes back the newest migration that is in force, with the data
// it holds, and returns what it took back; nil when there is none. Views go
// back to the form of the version below before tables lose what the newer form
// reads.
func (d *DB) MigrateDown(ctx context.Context) (*MigrationStatus, error) {
	p, err := d.paramsOfServer(ctx, Retention{})
	if err != nil {
		return nil, err
	}
	all, err := migrations.Render(p)
	if err != nil {
		return nil, err
	}
	applied, err := d.applied(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Backward(all) {
		if !applied[m.Version].Applied {
			continue
		}
		if err := d.viewsDown(ctx, m.Version); err != nil {
			return nil, err
		}
		if err := d.step(ctx, m, false); err != nil {
			return nil, err
		}
		return &MigrationStatus{Version: m.Version, Name: m.Name}, nil
	}
	return nil, nil //nolint:nilnil // nothing to take back is no error
}

// viewsDown brings the views from a version into the form of the one below.
func (d *DB) viewsDown(ctx context.Context, version uint32) error {
	p := d.params(Retention{})
	above, err := migrations.Views(p, version)
	if err != nil {
		return err
	}
	below, err := migrations.Views(p, version-1)
	if err != nil {
		return err
	}
	// Views that stay stop reading those that go before these are dropped.
	if err := d.replaceViews(ctx, below); err != nil {
		return err
	}
	return d.dropViews(ctx, above, below)
}

// MigrationStatus tells of every migration that this program or the database
// knows, in order of version. It changes nothing.
func (d *DB) MigrationStatus(ctx context.Context) ([]MigrationStatus, error) {
	all, err := migrations.Render(d.params(Retention{}))
	if err != nil {
		return nil, err
	}
	known, err := d.applied(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if _, ok := known[m.Version]; !ok {
			known[m.Version] = MigrationStatus{Version: m.Version, Name: m.Name}
		}
	}
	list := make([]MigrationStatus, 0, len(known))
	for _, s := range known {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b MigrationStatus) int { return int(a.Version) - int(b.Version) })
	return list, nil
}

// SchemaVersion returns the newest version in force and the one this program
// was built for. A database that is ahead serves an older program as well.
func (d *DB) SchemaVersion(ctx context.Context) (current, wanted uint32, err error) {
	applied, err := d.applied(ctx)
	if err != nil {
		return 0, 0, err
	}
	return newest(applied), migrations.Latest(), nil
}

// newest is the newest version in force, 0 when there is none.
func newest(applied map[uint32]MigrationStatus) (version uint32) {
	for v, s := range applied {
		if s.Applied {
			version = max(version, v)
		}
	}
	return version
}

func (d *DB) params(keep Retention) migrations.Params {
	return migrations.Params{
		Database: d.cfg.Database, Cluster: d.cfg.Cluster, Topology: d.topology, SpansRetention: keep.Spans, FlowsRetention: keep.Flows,
	}
}

// bootstrap makes the record of migrations where there is none. A statement for
// all nodes fails while one of them is down, so none is run without need: a
// server must be able to start then.
func (d *DB) bootstrap(ctx context.Context, p migrations.Params) error {
	exists, err := d.tableExists(ctx, recordTable)
	if err != nil || exists {
		return err
	}
	statements, err := migrations.Bootstrap(p)
	if err != nil {
		return err
	}
	return d.execAll(ctx, "prepare database "+p.Database, statements)
}

// step runs one migration and then records it. A crash between the two makes
// the next runner do it again, which changes nothing.
func (d *DB) step(ctx context.Context, m migrations.Migration, up bool) error {
	statements, direction := m.Up, "up"
	if !up {
		statements, direction = m.Down, "down"
	}
	start := time.Now()
	what := fmt.Sprintf("migrate %s %04d_%s", direction, m.Version, m.Name)
	if err := d.execAll(ctx, what, statements); err != nil {
		return err
	}
	// Each run is a row of its own. Without a token, ClickHouse would drop the second of two
	// equal ones as a copy: a default such as the time is no part of what it compares.
	record := driver.Context(ctx, driver.WithSettings(driver.Settings{"async_insert": 0, "insert_deduplication_token": rand.Text()}))
	err := d.conn.Exec(record, "INSERT INTO "+d.cfg.Database+"."+recordTable+" (version, name, applied) VALUES ($1, $2, $3)",
		m.Version, m.Name, up)
	if err != nil {
		return fmt.Errorf("record migration %04d_%s: %w", m.Version, m.Name, readable(err))
	}
	applied, err := d.applied(ctx)
	if err != nil {
		return err
	}
	if applied[m.Version].Applied != up {
		return fmt.Errorf("record migration %04d_%s: an older record of %s counts as newer: the clocks of the nodes differ", m.Version, m.Name, recordTable)
	}
	d.log.Info("migrated", slog.String("direction", direction), slog.Any("version", m.Version), slog.String("name", m.Name), slog.Duration("took", time.Since(start)))
	return nil
}

func (d *DB) execAll(ctx context.Context, what string, statements []string) error {
	for _, statement := range statements {
		if err := d.exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// exec runs one statement that changes tables. With ON CLUSTER it waits for every node, and
// the error names those that failed and those that did not answer.
func (d *DB) exec(ctx context.Context, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, d.ddlTimeout+ddlGrace)
	defer cancel()
	if onCluster := d.params(Retention{}).OnCluster(); onCluster == "" || !strings.Contains(statement, onCluster) {
		return readable(d.conn.Exec(ctx, statement))
	}
	rows, err := d.conn.Query(driver.Context(ctx, driver.WithSettings(driver.Settings{
		"distributed_ddl_task_timeout": int(d.ddlTimeout / time.Second),
		"distributed_ddl_output_mode":  "never_throw", // a row for each node instead
	})), statement)
	if err != nil {
		return readable(err)
	}
	defer func() { _ = rows.Close() }() // Err tells the same
	var errs []error
	for rows.Next() {
		var node nodeStatus
		if err := rows.Scan(&node.host, &node.port, &node.status, &node.err, &node.remaining, &node.active); err != nil {
			return fmt.Errorf("read the answers of the nodes: %w", err)
		}
		errs = append(errs, node.failure(d.ddlTimeout))
	}
	return errors.Join(append(errs, readable(rows.Err()))...)
}

// nodeStatus is the row of one node in the answer to a statement ON CLUSTER.
type nodeStatus struct {
	host              string
	port              uint16
	status            *int64 // nil while the node has not answered
	err               *string
	remaining, active uint64
}

func (n *nodeStatus) failure(waited time.Duration) error {
	addr := net.JoinHostPort(n.host, strconv.Itoa(int(n.port)))
	switch {
	case n.status == nil:
		return fmt.Errorf("node %s has not run it within %s; it will once it is up and reaches Keeper. Start it, or take it out of remote_servers", addr, waited)
	case *n.status != 0:
		return fmt.Errorf("at node %s: %w", addr, readable(&driver.Exception{Code: int32(*n.status), Message: *n.err}))
	default:
		return nil
	}
}

// applied returns the newest record of each version; none before bootstrap.
func (d *DB) applied(ctx context.Context) (map[uint32]MigrationStatus, error) {
	found := make(map[uint32]MigrationStatus)
	exists, err := d.tableExists(ctx, recordTable)
	if err != nil || !exists {
		return found, err
	}
	// In a cluster another node may have a record that has not arrived here yet.
	table, settings := d.cfg.Database+"."+recordTable, ""
	if d.params(Retention{}).OnCluster() != "" {
		table, settings = "clusterAllReplicas('"+d.cfg.Cluster+"', '"+d.cfg.Database+"', '"+recordTable+"')", d.skipUnavailable()
	}
	rows, err := d.conn.Query(ctx, "SELECT version, argMax(name, at), argMax(applied, at), max(at) FROM "+table+" GROUP BY version"+settings)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", readable(err))
	}
	defer func() { _ = rows.Close() }() // Err tells the same
	for rows.Next() {
		var s MigrationStatus
		var last time.Time
		if err := rows.Scan(&s.Version, &s.Name, &s.Applied, &last); err != nil {
			return nil, fmt.Errorf("read migrations: %w", err)
		}
		s.At = last
		found[s.Version] = s
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read migrations: %w", readable(err))
	}
	return found, nil
}

// paramsOfServer returns the parameters with the table settings that the server knows.
func (d *DB) paramsOfServer(ctx context.Context, keep Retention) (migrations.Params, error) {
	p := d.params(keep)
	for name, known := range map[string]*bool{
		"string_serialization_version": &p.StringSerialization,
		"auto_statistics_types":        &p.AutoStatistics,
		"merge_selector_base":          &p.MergeSelectorBase,
	} {
		var err error
		if *known, err = d.knowsTableSetting(ctx, name); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (d *DB) knowsTableSetting(ctx context.Context, name string) (bool, error) {
	var n uint64
	err := d.conn.QueryRow(ctx, "SELECT count() FROM system.merge_tree_settings WHERE name = $1", name).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for table setting %s: %w", name, readable(err))
	}
	return n > 0, nil
}

func (d *DB) tableExists(ctx context.Context, table string) (bool, error) {
	var n uint64
	err := d.conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = $1 AND name = $2",
		d.cfg.Database, table).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for table %s.%s: %w", d.cfg.Database, table, readable(err))
	}
	return n > 0, nil
}

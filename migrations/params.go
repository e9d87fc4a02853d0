package migrations

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Topology says how tables come to be on the nodes of a cluster.
type Topology uint8

const (
	// Replicated sends every statement ON CLUSTER and makes Replicated tables.
	// It needs ClickHouse Keeper.
	Replicated Topology = iota
	// PerShard makes plain tables under each Distributed one and names no
	// cluster in the DDL: whoever uses it runs the statements on each node.
	// For engines without Keeper, such as those of tests.
	PerShard
)

// Params is what a migration may depend on. The zero value is not valid:
// Database is required.
type Params struct {
	Database string
	// Cluster is a name in remote_servers. Empty: one node, or nodes that need
	// no DDL of their own.
	Cluster  string
	Topology Topology // only with Cluster
	// SpansRetention is how long spans are kept, counted from their start. Zero
	// keeps them for ever.
	SpansRetention time.Duration
	// FlowsRetention is the same for flow data, counted from the end of a row's interval.
	FlowsRetention time.Duration
	// StringSerialization is whether the server knows the table setting
	// string_serialization_version. Those that do not store strings as we want
	// them anyway.
	StringSerialization bool
	// AutoStatistics is whether the server knows the table setting
	// auto_statistics_types. Those that do not make no statistics by themselves.
	AutoStatistics bool
}

var (
	safeDatabase = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	safeCluster  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
)

// SafeDatabase reports whether name can stand in SQL without quotes.
func SafeDatabase(name string) bool { return safeDatabase.MatchString(name) }

// SafeCluster reports whether name can stand between single quotes in SQL.
func SafeCluster(name string) bool { return safeCluster.MatchString(name) }

func (p Params) validate() error {
	if !SafeDatabase(p.Database) {
		return fmt.Errorf("render migrations: database %q is not a plain name", p.Database)
	}
	if p.Cluster != "" && !SafeCluster(p.Cluster) {
		return fmt.Errorf("render migrations: cluster %q is not a plain name", p.Cluster)
	}
	if keep := min(p.SpansRetention, p.FlowsRetention); keep < 0 {
		return fmt.Errorf("render migrations: retention %s is negative", keep)
	}
	return nil
}

// PodsRetention is how long pods and services are kept after they were reported last: as long as any span or
// flow that may ask for them.
func (p Params) PodsRetention() time.Duration {
	if p.SpansRetention == 0 || p.FlowsRetention == 0 {
		return 0
	}
	return max(p.SpansRetention, p.FlowsRetention)
}

func (p Params) replicated() bool { return p.Cluster != "" && p.Topology == Replicated }

// OnCluster is the clause that makes a statement run on every node, with a
// space before it, or nothing.
func (p Params) OnCluster() string {
	if !p.replicated() {
		return ""
	}
	return " ON CLUSTER '" + p.Cluster + "'"
}

// Spans is the table that the views over spans read.
func (p Params) Spans() string { return p.all("spans") }

// Flows is the table that the views over flow data read.
func (p Params) Flows() string { return p.all("flows") }

// ServiceAddresses is the table of services by address, of all nodes.
func (p Params) ServiceAddresses() string { return p.all("service_addresses") }

// FlowAddresses is the table of addresses that agents tell of, of all nodes.
func (p Params) FlowAddresses() string { return p.all("flow_addresses") }

// Thresholds are what the views over spans and flows take for bad: as they stand in SQL, numbers or
// parameters of the view.
type Thresholds struct {
	Params
	// SlackMS is how far the clocks of hosts may disagree, in milliseconds.
	SlackMS string
	// RetransmitPercent of all segments is too many to be sent again.
	RetransmitPercent string
	// WindowPercent of the time that there was anything to send is too much to wait for
	// the receiver to read.
	WindowPercent string
}

// Thresholds are those of the views that take none. Half a percent of loss halves the throughput of a
// connection over a wide area (Mathis et al. 1997: it falls with the square root of the loss); one percent is
// above what tail loss probes make of a clean network.
func (p Params) Thresholds() Thresholds { return Thresholds{p, "1000", "1", "20"} }

// AsParameters are those of the views that take all of them.
func (p Params) AsParameters() Thresholds {
	return Thresholds{p, "{slack_ms:UInt32}", "{retransmit_percent:Float64}", "{window_percent:Float64}"}
}

// all is the table with the rows of all shards.
func (p Params) all(name string) string {
	if p.Cluster != "" {
		return p.Database + "." + name + "_distributed"
	}
	return p.Database + "." + name + "_local"
}

func (p Params) funcs() template.FuncMap {
	return template.FuncMap{
		"engine":        p.engine,
		"engineShared":  p.engineShared,
		"deduplication": p.deduplication,
		"ttl":           ttlClause,
		"addColumn":     p.addColumn,
		"dropColumn":    p.dropColumn,
	}
}

// sharded are the tables that shards hold parts of. In a cluster each has a
// Distributed table beside it.
var sharded = []string{"spans", "flows", "service_addresses", "flow_addresses"}

// addColumn adds a column to a table, whose name stands without its suffix, and
// to the Distributed table beside it.
func (p Params) addColumn(table, definition string) string {
	return strings.Join(p.alterAll(table, "ADD COLUMN IF NOT EXISTS "+definition), ";\n")
}

// dropColumn undoes addColumn. The Distributed table goes first, which reads
// the other.
func (p Params) dropColumn(table, column string) string {
	alters := p.alterAll(table, "DROP COLUMN IF EXISTS "+column)
	slices.Reverse(alters)
	return strings.Join(alters, ";\n")
}

func (p Params) alterAll(table, change string) []string {
	suffixes := []string{"_local"}
	if p.Cluster != "" && slices.Contains(sharded, table) {
		suffixes = append(suffixes, "_distributed")
	}
	var alters []string
	for _, suffix := range suffixes {
		alters = append(alters, "ALTER TABLE "+p.Database+"."+table+suffix+p.OnCluster()+" "+change)
	}
	return alters
}

// engine is a table engine of one shard: the replicas of a shard hold the same
// rows, and shards hold different ones.
func (p Params) engine(name string, args ...string) string {
	return p.engineAt(name, "'/clickhouse/tables/{shard}/{database}/{table}'", "'{replica}'", args)
}

// engineShared is a table engine whose rows every node of the cluster holds,
// whatever its shard.
func (p Params) engineShared(name string, args ...string) string {
	return p.engineAt(name, "'/clickhouse/tables/all/{database}/{table}'", "'{shard}-{replica}'", args)
}

func (p Params) engineAt(name, path, replica string, args []string) string {
	if p.replicated() {
		name = "Replicated" + name
		args = append([]string{path, replica}, args...)
	}
	if len(args) == 0 {
		return name
	}
	return name + "(" + strings.Join(args, ", ") + ")"
}

// dedupBlocks is how many inserted blocks a new table remembers by their tokens, ClickHouse's
// own figure for replicated tables. A server with many partitions asks for more, see
// DeduplicationWindow.
const dedupBlocks = 10000

// DeduplicationWindow is how many blocks a table must remember for writers of so many
// partitions: those of ten minutes, when each partition inserts once a second. A writer sends
// a block again without a look for half a minute (pkg/writer), and an insert ends within two
// (query_timeout and the time to connect); the rest is for partitions that insert more often.
func DeduplicationWindow(partitions int) int64 {
	return max(dedupBlocks, 600*int64(partitions))
}

// dedupWindow is how long a replicated table remembers them. Servers of
// different versions come with anything from an hour to a week.
const dedupWindow = 7 * 24 * time.Hour

// deduplication is the settings under which a block sent twice with the same
// token is stored once.
func (p Params) deduplication() string {
	if p.replicated() {
		return fmt.Sprintf("replicated_deduplication_window = %d, replicated_deduplication_window_seconds = %d",
			dedupBlocks, int64(dedupWindow/time.Second))
	}
	return fmt.Sprintf("non_replicated_deduplication_window = %d", dedupBlocks)
}

// TTL is the expression that ends a row's life keep after the time in column,
// in the form in which ClickHouse shows it, or "" to keep it for ever.
func TTL(column string, keep time.Duration) string {
	if keep <= 0 {
		return ""
	}
	seconds := max(int64(keep/time.Second), 1)
	return fmt.Sprintf("toDateTime(%s) + toIntervalSecond(%d)", column, seconds)
}

func ttlClause(column string, keep time.Duration) string {
	if expr := TTL(column, keep); expr != "" {
		return "TTL " + expr
	}
	return ""
}

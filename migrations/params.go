package migrations

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Topology selects how tables are created on the nodes of a cluster.
type Topology uint8

const (
	// Replicated runs every statement ON CLUSTER and creates Replicated tables. It
	// requires ClickHouse Keeper.
	Replicated Topology = iota
	// PerShard creates plain tables under each Distributed table and names no cluster in
	// the DDL: the caller runs the statements on each node. It is for engines without
	// Keeper, such as those of tests.
	PerShard
)

// Params are the inputs of a migration. The zero value is not valid: Database is
// required.
type Params struct {
	Database string
	// Cluster is a name in remote_servers. Empty means one node, or nodes that need no
	// DDL of their own.
	Cluster  string
	Topology Topology // only with Cluster
	// SpansRetention is how long spans are kept, from their start. Zero keeps them
	// forever.
	SpansRetention time.Duration
	// FlowsRetention is how long flow data is kept, from the end of a row's interval.
	// Zero keeps it forever.
	FlowsRetention time.Duration
	// StringSerialization means that the server supports the table setting
	// string_serialization_version. Older servers store strings in the desired form
	// anyway.
	StringSerialization bool
	// AutoStatistics means that the server supports the table setting
	// auto_statistics_types. Older servers create no statistics by themselves.
	AutoStatistics bool
	// MergeSelectorBase means that the server supports the table setting
	// merge_selector_base. Older servers merge as they always did.
	MergeSelectorBase bool
}

var (
	safeDatabase = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	safeCluster  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
)

// SafeDatabase reports whether name needs no quotes in SQL.
func SafeDatabase(name string) bool { return safeDatabase.MatchString(name) }

// SafeCluster reports whether name is safe between single quotes in SQL.
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

// PodsRetention is how long pods and services are kept after their last report: as long
// as any span or flow that may refer to them.
func (p Params) PodsRetention() time.Duration {
	if p.SpansRetention == 0 || p.FlowsRetention == 0 {
		return 0
	}
	return max(p.SpansRetention, p.FlowsRetention)
}

func (p Params) replicated() bool { return p.Cluster != "" && p.Topology == Replicated }

// OnCluster returns the clause that runs a statement on every node, with a leading space,
// or "".
func (p Params) OnCluster() string {
	if !p.replicated() {
		return ""
	}
	return " ON CLUSTER '" + p.Cluster + "'"
}

// Spans returns the table that the views over spans read.
func (p Params) Spans() string { return p.all("spans") }

// Flows returns the table that the views over flow data read.
func (p Params) Flows() string { return p.all("flows") }

// ServiceAddresses returns the table of services by address, for all nodes.
func (p Params) ServiceAddresses() string { return p.all("service_addresses") }

// FlowAddresses returns the table of addresses reported by agents, for all nodes.
func (p Params) FlowAddresses() string { return p.all("flow_addresses") }

// Thresholds are the limits above which the views over spans and flows report a problem,
// as SQL: numbers or parameters of the view.
type Thresholds struct {
	Params
	// SlackMS is the tolerated clock difference between hosts, in milliseconds.
	SlackMS string
	// RetransmitPercent is the tolerated share of retransmitted segments.
	RetransmitPercent string
	// WindowPercent is the tolerated share of the busy time spent waiting for the
	// receiver's window.
	WindowPercent string
	// Traces is the condition on the trace id, without its left side.
	Traces string
}

// OneTrace returns the limits for a view of the trace that its parameter names.
func (t Thresholds) OneTrace() Thresholds {
	t.Traces = "= {trace_id:String}"
	return t
}

// SeveralTraces returns the limits for a view of the traces that its parameter lists.
func (t Thresholds) SeveralTraces() Thresholds {
	t.Traces = "IN {trace_ids:Array(String)}"
	return t
}

// GapMS is how many milliseconds longer than its server worked the client of a request waits
// before the request, and so its span, counts as harmed. A failed one always does.
func (Params) GapMS() string { return "10" }

// GapPercent is the share of the client's time that the difference must exceed as well.
func (Params) GapPercent() string { return "20" }

// RTTTimes is how many times the usual round trip a slow one takes, in addition to being
// longer by GapMS.
func (Params) RTTTimes() string { return "3" }

// SlowTimes is how many times the usual duration a slow request takes whose server has no
// span, in addition to being longer by GapMS.
func (Params) SlowTimes() string { return "3" }

// FewFailures is the number of failures, or retransmitted segments, in a minute from which an
// edge without spans is in trouble.
func (Params) FewFailures() string { return "3" }

// Private returns the condition under which an address belongs to a private network: it
// is in one of the ranges that the addresses below begin and end.
func (Params) Private(ip string) string {
	var bounds []string
	for _, a := range []string{
		"::ffff:10.0.0.0", "::ffff:11.0.0.0", "::ffff:100.64.0.0", "::ffff:100.128.0.0", "::ffff:127.0.0.0", "::ffff:128.0.0.0",
		"::ffff:169.254.0.0", "::ffff:169.255.0.0", "::ffff:172.16.0.0", "::ffff:172.32.0.0", "::ffff:192.168.0.0", "::ffff:192.169.0.0",
		"fc00::", "fe00::", "fe80::", "fec0::",
	} {
		bounds = append(bounds, "toIPv6('"+a+"')")
	}
	return "(arrayCount(x -> x <= " + ip + ", [" + strings.Join(bounds, ", ") + "]) % 2 = 1)"
}

// Telemetry returns the condition under which a connection carries no requests of
// services: exports of telemetry to agents, collectors and servers, and probes.
func (Params) Telemetry() string {
	const programs = "('metaflow-agent', 'metaflow-server', 'otelcol', 'otelcol-contrib', 'otelcol-k8s', 'kubelet')"
	return "(x.server_port IN (4317, 4318, 38086, 20035)) + (x.server_process IN " + programs + ") + (x.client_process IN " + programs + ") > 0"
}

// Answered returns the condition under which the answer to a failed request says why it failed:
// a status of HTTP except 502 to 504, which a proxy gives for a broken connection, or of gRPC except
// CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL and UNAVAILABLE, which clients give themselves.
func (Params) Answered() string {
	return "(match(response_code, '^(4..|50[015-9]|5[1-9].)$') OR response_code IN ('3', '5', '6', '7', '8', '9', '10', '11', '12', '15', '16', 'INVALID_ARGUMENT', 'NOT_FOUND', " +
		"'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'DATA_LOSS', 'UNAUTHENTICATED'))"
}

// Word is the empty word, of the type of names.
func (Params) Word() string { return "''::LowCardinality(String)" }

// Thresholds returns the limits of the views without parameters. Half a percent of loss
// halves the throughput of a wide-area connection (Mathis et al. 1997: it falls with the
// square root of the loss); one percent is more than tail loss probes cause on a clean
// network.
func (p Params) Thresholds() Thresholds {
	return Thresholds{Params: p, SlackMS: "1000", RetransmitPercent: "1", WindowPercent: "20"}
}

// AsParameters returns the limits of the views that take them as parameters.
func (p Params) AsParameters() Thresholds {
	return Thresholds{Params: p, SlackMS: "{slack_ms:UInt32}", RetransmitPercent: "{retransmit_percent:Float64}", WindowPercent: "{window_percent:Float64}"}
}

// all returns the table with the rows of all shards.
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

// sharded are the tables whose rows are divided among shards. In a cluster each has a
// Distributed table.
var sharded = []string{"spans", "flows", "service_addresses", "flow_addresses"}

// addColumn adds columns to a table, named without its suffix, and to its Distributed
// table. ClickHouse adds all columns of a statement at once.
func (p Params) addColumn(table string, definitions ...string) string {
	return strings.Join(p.alterAll(table, "ADD COLUMN IF NOT EXISTS ", definitions), ";\n")
}

// dropColumn reverts addColumn. The Distributed table goes first, because it reads the
// other. One statement drops all columns: a part that is inserted while one column is
// dropped may keep it, and the mutation that drops the next one would fail on it.
func (p Params) dropColumn(table string, columns ...string) string {
	alters := p.alterAll(table, "DROP COLUMN IF EXISTS ", columns)
	slices.Reverse(alters)
	return strings.Join(alters, ";\n")
}

func (p Params) alterAll(table, command string, arguments []string) []string {
	change := command + strings.Join(arguments, ",\n    "+command)
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

// engine returns a table engine of one shard: the replicas of a shard have the same rows,
// and shards have different ones.
func (p Params) engine(name string, args ...string) string {
	return p.engineAt(name, "'/clickhouse/tables/{shard}/{database}/{table}'", "'{replica}'", args)
}

// engineShared returns a table engine whose rows every node of the cluster has, whatever
// its shard.
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

// dedupBlocks is how many inserted blocks a new table remembers by token, ClickHouse's
// own default for replicated tables. A server with many partitions needs more, see
// DeduplicationWindow.
const dedupBlocks = 10000

// DeduplicationWindow returns how many blocks a table must remember for writers of so
// many partitions: those of ten minutes, if each partition inserts once a second. A
// writer retries a block without a lookup for half a minute (pkg/writer), and an insert
// ends within two (query_timeout and the time to connect); the rest is for partitions
// that insert more often.
func DeduplicationWindow(partitions int) int64 {
	return max(dedupBlocks, 600*int64(partitions))
}

// dedupWindow is how long a replicated table remembers blocks. Defaults of server
// versions range from an hour to a week.
const dedupWindow = 7 * 24 * time.Hour

// deduplication returns the settings under which a block that is sent twice with one
// token is stored once.
func (p Params) deduplication() string {
	if p.replicated() {
		return fmt.Sprintf("replicated_deduplication_window = %d, replicated_deduplication_window_seconds = %d",
			dedupBlocks, int64(dedupWindow/time.Second))
	}
	return fmt.Sprintf("non_replicated_deduplication_window = %d", dedupBlocks)
}

// TTL returns the expression that expires a row keep after the time in column, in the
// form in which ClickHouse shows it, or "" to keep it forever.
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

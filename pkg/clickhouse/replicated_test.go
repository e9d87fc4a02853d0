package clickhouse

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// The tests of this file need a replicated ClickHouse cluster, which the embedded engine is
// not. They run on the one that the environment names, each in a database of its own:
//
//	METAFLOW_TEST_CLICKHOUSE_CLUSTER       host:port of every node, separated by commas
//	METAFLOW_TEST_CLICKHOUSE_CLUSTER_NAME  its name in remote_servers; metaflow if empty
//	METAFLOW_TEST_CLICKHOUSE_USER, _PASSWORD
//
// Tests that stop nodes also need shell commands, for the node with the number $NODE, from 1
// on, in the list of addresses:
//
//	METAFLOW_TEST_CLICKHOUSE_STOP   kills the node, as a power cut would
//	METAFLOW_TEST_CLICKHOUSE_START  starts it again
//	METAFLOW_TEST_CLICKHOUSE_WIPE   deletes its data while it is stopped
const clusterVariable = "METAFLOW_TEST_CLICKHOUSE_CLUSTER"

// replicated returns the configuration of the cluster, for a new database.
func replicated(t *testing.T) Config {
	t.Helper()
	addresses := os.Getenv(clusterVariable)
	if addresses == "" {
		t.Skip(clusterVariable + " names no replicated ClickHouse cluster")
	}
	cfg := testConfig(t)
	cfg.Addresses, cfg.Username = strings.Split(addresses, ","), "default"
	cfg.Cluster = cmp.Or(os.Getenv(clusterVariable+"_NAME"), "metaflow")
	cfg.Username = cmp.Or(os.Getenv("METAFLOW_TEST_CLICKHOUSE_USER"), cfg.Username)
	cfg.Password = os.Getenv("METAFLOW_TEST_CLICKHOUSE_PASSWORD")
	return cfg
}

// migratedCluster returns a DB whose database has the current schema on every node.
func migratedCluster(t *testing.T, cfg Config) *DB {
	t.Helper()
	d := openDB(t, cfg)
	drop := func() error {
		return d.exec(context.Background(), "DROP DATABASE IF EXISTS "+cfg.Database+" ON CLUSTER '"+cfg.Cluster+"' SYNC")
	}
	if err := drop(); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	if err := d.Migrate(t.Context(), Retention{Spans: 30 * 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	return d
}

// atNode returns a DB that asks only the node at addr.
func atNode(t *testing.T, cfg Config, addr string) *DB {
	t.Helper()
	cfg.Addresses = []string{addr}
	return openDB(t, cfg)
}

// replicasOf returns the addresses of a shard with at least two replicas.
func replicasOf(t *testing.T, d *DB) (shard int, addrs []string) {
	t.Helper()
	if err := d.shards.refresh(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for shard, nodes := range d.shards.list {
		if len(nodes) > 1 {
			for _, n := range nodes {
				addrs = append(addrs, n.addr)
			}
			return shard, addrs
		}
	}
	t.Skip("no shard of the cluster has two replicas")
	return 0, nil
}

// command runs the command of a variable for the node at addr, and skips the test without it.
func command(t *testing.T, cfg Config, variable, addr string) {
	t.Helper()
	shell := os.Getenv("METAFLOW_TEST_CLICKHOUSE_" + variable)
	if shell == "" {
		t.Skipf("METAFLOW_TEST_CLICKHOUSE_%s has no command", variable)
	}
	number := slices.Index(cfg.Addresses, addr) + 1
	if number == 0 {
		t.Fatalf("%s lacks %s, which the cluster has", clusterVariable, addr)
	}
	run := exec.Command("sh", "-c", shell)
	run.Env = append(os.Environ(), "NODE="+strconv.Itoa(number))
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", shell, err, out)
	}
}

// stopped kills a node. It is started again by the function returned, and at the end of the
// test at the latest.
func stopped(t *testing.T, cfg Config, addr string) (start func()) {
	t.Helper()
	if os.Getenv("METAFLOW_TEST_CLICKHOUSE_START") == "" {
		t.Skip("METAFLOW_TEST_CLICKHOUSE_START has no command")
	}
	command(t, cfg, "STOP", addr)
	d := atNode(t, cfg, addr)
	running := false
	start = func() {
		t.Helper()
		if running {
			return
		}
		running = true
		command(t, cfg, "START", addr)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := d.Wait(ctx); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(start)
	return start
}

// eventually waits until a node answers a query with want.
func eventually(t *testing.T, d *DB, query, want string) {
	t.Helper()
	wait.NoError(t, func() error {
		got := ""
		err := d.Query(t.Context(), query, func(scan func(...any) error) error { return scan(&got) })
		if err == nil && got != want {
			err = fmt.Errorf("%s at %s: %s, want %s", query, d.addresses(), got, want)
		}
		return err
	})
}

func countSpans(cfg Config) string {
	return "SELECT toString(count()) FROM " + cfg.Database + ".spans_local"
}

func insertHundred(t *testing.T, ins *Inserter, shard int, token string, at time.Time) error {
	t.Helper()
	return ins.Insert(t.Context(), shard, "spans_local", token, spanBlock(100, func(i int) time.Time { return at.Add(time.Duration(i)) }), 100)
}

// preferring returns an Inserter of the cluster that tries addr first.
func preferring(t *testing.T, cfg Config, shard int, addr string) *Inserter {
	t.Helper()
	ins := newInserter(t, cfg)
	if err := ins.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range ins.shards.list[shard] {
		if n.addr != addr {
			n.mu.Lock()
			n.downUntil = time.Now().Add(time.Hour)
			n.mu.Unlock()
		}
	}
	return ins
}

func TestReplicatedForwardBackAndForward(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	// Within an hour: ClickHouse takes equal rows of that time for copies.
	for round := range 2 {
		for v := migrations.Latest(); v > 0; v-- {
			// ClickHouse refuses to drop a column again while a node still rewrites parts.
			wait.NoError(t, func() error {
				back, err := d.MigrateDown(t.Context())
				if err == nil && (back == nil || back.Version != v) {
					t.Fatalf("round %d: took back %v, want version %d", round, back, v)
				}
				return err
			})
			checkVersion(t, d, v-1)
		}
		if err := d.Migrate(t.Context(), Retention{}); err != nil {
			t.Fatal(err)
		}
		for _, addr := range d.cfg.Addresses {
			at := atNode(t, d.cfg, addr)
			checkVersion(t, at, migrations.Latest())
			if got := queryText(t, at, "SELECT count() FROM "+d.cfg.Database+".spans"); got != "0" {
				t.Errorf("round %d: %s spans at %s", round, got, addr)
			}
		}
	}
}

func TestReplicatedTokensHoldAcrossReplicas(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	shard, addrs := replicasOf(t, d)
	at := day(1)
	for _, addr := range addrs {
		if err := insertHundred(t, preferring(t, d.cfg, shard, addr), shard, "token", at); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range addrs {
		eventually(t, atNode(t, d.cfg, addr), countSpans(d.cfg), "100")
	}
	// A look-up at any replica finds what another one acknowledged.
	if err := insertHundred(t, preferring(t, d.cfg, shard, addrs[0]), shard, "another", at.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	key := keyOf(7, at.Add(time.Hour+7))
	for i, addr := range addrs {
		look := atNode(t, d.cfg, addr)
		if err := look.shards.refresh(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for j, n := range look.shards.list[shard] {
			if j != i {
				n.downUntil = time.Now().Add(time.Hour)
			}
		}
		found, err := look.Existing(t.Context(), shard, false, spansTable(), []signal.Key{key})
		if err != nil || len(found) != 1 {
			t.Errorf("at %s: %d keys of 1, %v", addr, len(found), err)
		}
	}
}

func TestReplicatedKilledReplica(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	shard, addrs := replicasOf(t, d)
	ins := newInserter(t, d.cfg)
	insert := func(token string, hour int) {
		t.Helper()
		if err := insertHundred(t, ins, shard, token, day(1).Add(time.Duration(hour)*time.Hour)); err != nil {
			// The one block in flight may fail; its token makes the second attempt safe.
			if err = insertHundred(t, ins, shard, token, day(1).Add(time.Duration(hour)*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
	}
	insert("0", 0)
	eventually(t, atNode(t, d.cfg, addrs[1]), countSpans(d.cfg), "100") // otherwise the rows are away with the first replica
	start := stopped(t, d.cfg, addrs[0])
	insert("1", 1)
	insert("0", 0) // known to the other replica as well
	eventually(t, atNode(t, d.cfg, addrs[1]), countSpans(d.cfg), "200")
	start()
	insert("1", 1)
	for _, addr := range addrs {
		eventually(t, atNode(t, d.cfg, addr), countSpans(d.cfg), "200")
	}
}

func TestReplicatedQuorumLostAndFound(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	shard, addrs := replicasOf(t, d)
	cfg := d.cfg
	cfg.InsertQuorum, cfg.QueryTimeout = strconv.Itoa(len(addrs)), 10*time.Second
	ins := newInserter(t, cfg)
	if err := insertHundred(t, ins, shard, "with all", day(1)); err != nil {
		t.Fatal(err)
	}
	start := stopped(t, d.cfg, addrs[1])
	if err := insertHundred(t, ins, shard, "without one", day(2)); err == nil {
		t.Error("an insert succeeded without its quorum")
	}
	start()
	wait.NoError(t, func() error { return insertHundred(t, ins, shard, "without one", day(2)) })
	for _, addr := range addrs {
		eventually(t, atNode(t, d.cfg, addr), countSpans(d.cfg), "200")
	}
}

// A node that joins has no tables.
func TestReplicatedNodeJoins(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	shard, addrs := replicasOf(t, d)
	if err := insertHundred(t, newInserter(t, d.cfg), shard, "token", day(1)); err != nil {
		t.Fatal(err)
	}
	joined := atNode(t, d.cfg, addrs[1])
	mustExec(t, joined, "DROP DATABASE "+d.cfg.Database+" SYNC")
	checkRestored(t, d, joined, nil)
}

// checkRestored lets CompleteNodes create all tables at a node, and waits for the rows.
func checkRestored(t *testing.T, d, node *DB, dropped []string) {
	t.Helper()
	done, err := d.CompleteNodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tables, err := migrations.Tables(d.params(Retention{}))
	if err != nil {
		t.Fatal(err)
	}
	addr := node.addresses()
	if !slices.Equal(done.Created[addr], tables) || len(done.Created) != 1 || len(done.Unreachable) != 0 {
		t.Errorf("created %v, want %v at %s; unreachable: %v", done.Created, tables, addr, done.Unreachable)
	}
	if !slices.Equal(done.Dropped[addr], dropped) {
		t.Errorf("dropped %v, want %v", done.Dropped, dropped)
	}
	if err := d.Migrate(t.Context(), Retention{Spans: 30 * 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	eventually(t, node, countSpans(d.cfg), "100")
	eventually(t, node, "SELECT toString(count()) FROM "+d.cfg.Database+".spans", "100")
	definitions := "SELECT toString(sum(cityHash64(name, create_table_query))) FROM system.tables WHERE database = '" + d.cfg.Database + "'"
	if here, there := queryText(t, node, definitions), queryText(t, d, definitions); here != there {
		t.Error("the node's tables and views differ from those of others")
	}
	again, err := d.CompleteNodes(t.Context())
	if err != nil || len(again.Created) > 0 || len(again.Nodes) != len(d.cfg.Addresses) {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestReplicatedNodeComesBackEmpty(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	shard, addrs := replicasOf(t, d)
	if err := insertHundred(t, newInserter(t, d.cfg), shard, "token", day(1)); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("METAFLOW_TEST_CLICKHOUSE_WIPE") == "" {
		t.Skip("METAFLOW_TEST_CLICKHOUSE_WIPE has no command")
	}
	lost := addrs[len(addrs)-1]
	start := stopped(t, d.cfg, lost)
	command(t, d.cfg, "WIPE", lost)
	start()

	// A server that starts goes on without the node, and leaves Keeper alone.
	if err := d.Migrate(t.Context(), Retention{Spans: 30 * 24 * time.Hour}); err != nil {
		t.Error(err)
	}
	if _, err := d.completeNodes(t.Context(), false); err == nil || !strings.Contains(err.Error(), "migrate up") || !strings.Contains(err.Error(), lost) {
		t.Errorf("without dropping: %v", err)
	}
	var shared []string
	tables, err := migrations.Tables(d.params(Retention{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if !strings.HasSuffix(table, "_distributed") {
			shared = append(shared, table)
		}
	}
	mustExec(t, atNode(t, d.cfg, lost), "DROP DATABASE "+d.cfg.Database+" SYNC") // the Distributed tables
	checkRestored(t, d, atNode(t, d.cfg, lost), shared)
}

// Keeper's replicas of a node that does not answer stay, whoever lacks a table.
func TestReplicatedLostReplicaOfNobodyKnown(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	_, addrs := replicasOf(t, d)
	m := member{node: d.shards.list[0][0]}
	done := &Completion{Nodes: addrs, Unreachable: map[string]error{addrs[1]: errLostReplica}}
	err := d.dropLost(t.Context(), m, nil, "CREATE TABLE m.t (a Int8) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/m/t', '{replica}') ORDER BY a", done)
	if err == nil || !strings.Contains(err.Error(), addrs[1]) || !strings.Contains(err.Error(), "SYSTEM DROP REPLICA '") || strings.Contains(err.Error(), "{shard}") {
		t.Errorf("one node does not answer: %v", err)
	}
	// Another node has the table: two nodes have the same macros.
	created, err := d.tablesAt(t.Context(), d.shards.list[0][0])
	if err != nil {
		t.Fatal(err)
	}
	var all []member
	for _, nodes := range d.shards.list {
		for _, n := range nodes {
			all = append(all, member{node: n})
		}
	}
	err = d.dropLost(t.Context(), m, all, created["spans_local"], &Completion{Nodes: addrs})
	if err == nil || !strings.Contains(err.Error(), "same macros") {
		t.Errorf("another node has the replica: %v", err)
	}
}

func TestReplicatedDDLNamesTheDeadNode(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	d.ddlTimeout = 5 * time.Second
	t.Cleanup(func() { d.ddlTimeout = ddlTimeout })
	statement := "CREATE VIEW " + d.cfg.Database + ".v ON CLUSTER '" + d.cfg.Cluster + "' AS SELECT 1 AS a"
	mustExec(t, d, statement)
	err := d.exec(t.Context(), statement)
	for _, addr := range d.cfg.Addresses {
		if err == nil || !strings.Contains(err.Error(), "at node "+addr+": ") {
			t.Errorf("a statement that fails at every node: %v, want %s in it", err, addr)
		}
	}
	dead := d.cfg.Addresses[len(d.cfg.Addresses)-1]
	stopped(t, d.cfg, dead)
	err = d.exec(t.Context(), "DROP VIEW "+d.cfg.Database+".v ON CLUSTER '"+d.cfg.Cluster+"'")
	if err == nil || !strings.Contains(err.Error(), "node "+dead+" has not run it") {
		t.Errorf("a statement while %s is down: %v", dead, err)
	}
	done, err := d.CompleteNodes(t.Context())
	if err != nil || !slices.Equal(slices.Collect(maps.Keys(done.Unreachable)), []string{dead}) {
		t.Errorf("CompleteNodes while %s is down: %+v, %v", dead, done, err)
	}
}

func TestHostOfReplica(t *testing.T) {
	for address, want := range map[string]string{
		"host: clickhouse-1\nport: 9009\ntcp_port: 9000\ndatabase: m\ntable: t\nscheme: http\n": "clickhouse-1",
		"port: 9009\n": "",
	} {
		if got := hostOf(address); got != want {
			t.Errorf("hostOf(%q) = %q, want %q", address, got, want)
		}
	}
}

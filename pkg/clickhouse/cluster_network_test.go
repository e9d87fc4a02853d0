package clickhouse

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
)

// Two spans of one trace and the flows of both ends describe a call and may lie on
// different shards. On every node the views give the same result as on a single server
// with all the data.
func TestNetworkViewsOverShards(t *testing.T) {
	cfg, shards := twoShards(t)
	one := openDB(t, testConfig(t))
	if err := one.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	first, second := id16("1")+id16("1"), id16("2")+id16("2")
	stories := []struct {
		trace string
		spans []spanRow
		conns []flowRow
	}{
		{
			first,
			[]spanRow{
				{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, took: 30 * time.Millisecond, status: "error"},
				{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: a},
				{id: "e", parent: "d", service: "cart", kind: "client", ip: b, peer: "10.0.0.9", peerPort: 5432},
			},
			[]flowRow{{role: "client", ip: b, port: 41000, peer: "10.0.0.9", peerPort: 5432, to: 30 * time.Second, resets: 1}},
		},
		{
			second,
			[]spanRow{{id: "f", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, took: 20 * time.Millisecond}},
			[]flowRow{
				{role: "client", ip: a, port: 40000, peer: b, peerPort: 80, to: 30 * time.Second, retransmits: 7, retransmitted: 1},
				{role: "server", ip: b, port: 80, peer: a, peerPort: 40000, to: 30 * time.Second},
			},
		},
	}
	for i, story := range stories {
		for _, d := range []*DB{shards[i], one} {
			insertSpans(t, d, story.trace, story.spans...)
			insertConns(t, d, story.conns...)
		}
	}
	for _, question := range []string{
		"SELECT * FROM %s.trace_network(trace_id = '" + first + "')",
		"SELECT * FROM %s.trace_network(trace_id = '" + second + "')",
		"SELECT * FROM %s.trace_network_with(trace_id = '" + first + "', slack_ms = 1000, retransmit_percent = 1, window_percent = 20)",
		"SELECT * FROM %s.traces_network(trace_ids = ['" + first + "', '" + second + "'])",
		"SELECT * FROM %s.service_network WHERE minute >= now() - INTERVAL 1 HOUR ORDER BY minute, client_service, server_service",
		"SELECT * FROM %s.network_trouble(minutes = 60)",
		"SELECT * FROM %s.network_trouble_with(minutes = 60, retransmit_percent = 1, window_percent = 20)",
		"SELECT role, toString(ip), toString(peer_ip), retransmits, resets FROM %s.flows ORDER BY ip, role, peer_ip",
	} {
		question = fmt.Sprintf(question, cfg.Database)
		want := queryText(t, one, question)
		if want == "" {
			t.Errorf("no rows for %s", question)
		}
		for i, d := range shards {
			if diff := cmp.Diff(want, queryText(t, d, question)); diff != "" {
				t.Errorf("%s at node %d (-one server +shards):\n%s", question, i, diff)
			}
		}
	}
}

// A retried block of flows is stored once, on its shard only, and so are the addresses
// derived from it. Flows that an agent sends again are found on any shard.
func TestFlowsOverShards(t *testing.T) {
	cfg, dbs := twoShards(t)
	ins := newInserter(t, cfg)
	if err := ins.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	var (
		end        = new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano)
		ip         proto.ColIPv6
		connection proto.ColUInt64
		keys       []signal.Key
	)
	for i := range 10 {
		k := flowOf(i, now.Add(time.Duration(i)*time.Second))
		k.Agent, k.NetworkNamespace = "", 0
		end.Append(time.Unix(0, k.End))
		ip = append(ip, proto.IPv6(k.IP))
		connection.Append(k.Connection)
		keys = append(keys, k.Key())
	}
	block := proto.Input{{Name: "time", Data: end}, {Name: "ip", Data: &ip}, {Name: "connection", Data: &connection}}
	for range 2 {
		if err := ins.Insert(t.Context(), 1, "flows_local", "flows/1/0-9", block, len(keys)); err != nil {
			t.Fatal(err)
		}
	}
	for i, d := range dbs {
		if got, want := queryText(t, d, "SELECT count() FROM "+cfg.Database+".flows_local"), []string{"0", "10"}[i]; got != want {
			t.Errorf("shard %d holds %s flows, want %s", i, got, want)
		}
		for _, question := range []string{"SELECT count() FROM %s.flows", "SELECT sum(flows) FROM %s.flow_addresses_distributed"} {
			if got := queryText(t, d, fmt.Sprintf(question, cfg.Database)); got != "10" {
				t.Errorf("%s at node %d: %s", question, i, got)
			}
		}
		strange := flows.IdentityOf(&keys[0])
		strange.IP = netip.MustParseAddr("10.200.0.1").As16()
		found, err := openDB(t, cfg).Existing(t.Context(), i, true, flowsTable(), append([]signal.Key{strange.Key()}, keys...))
		if err != nil || len(found) != len(keys) {
			t.Errorf("of shard %d %d flows are known, %v", i, len(found), err)
		}
	}
}

// A changed retention takes effect on every node, for every table.
func TestRetentionOverShards(t *testing.T) {
	cfg, dbs := twoShards(t)
	p := migrations.Params{Database: cfg.Database, Cluster: cfg.Cluster, Topology: migrations.PerShard}
	d := openDB(t, cfg)
	for table, column := range map[string]string{
		"flows_local": "time", "flow_addresses_local": "hour", "service_addresses_local": "hour", "pods_local": "seen", "services_local": "seen",
	} {
		hour := migrations.TTL(column, time.Hour)
		for _, node := range dbs {
			mustExec(t, node, alterTTL(p, table, hour))
		}
		got, err := d.currentTTLs(t.Context(), table)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{hour}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", table, diff)
		}
		mustExec(t, dbs[1], alterTTL(p, table, migrations.TTL(column, 2*time.Hour)))
		if got, err = d.currentTTLs(t.Context(), table); err != nil || len(got) != 2 {
			t.Errorf("%s differs between the nodes, and is %q, %v", table, got, err)
		}
	}
}

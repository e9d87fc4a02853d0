package clickhouse

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// The tables store what is known of pods, services and agents, and the views show the
// newest row of each.
func TestResourcesFitTheTables(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	ins := newInserter(t, cfg)
	began := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	at := func(minutes int) uint64 { return uint64(began.Add(time.Duration(minutes) * time.Minute).UnixNano()) }
	addr := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	insert := func(token, table string, input proto.Input, rows int) {
		t.Helper()
		if err := ins.Insert(t.Context(), 0, table, token, input, rows); err != nil {
			t.Fatal(err)
		}
		for _, name := range columnsOf(t, d, table) {
			if !slices.ContainsFunc(input, func(c proto.InputColumn) bool { return c.Name == name }) {
				t.Errorf("column %s of %s is never filled", name, table)
			}
		}
	}
	pod := func(uid, ip string, from, to, seen int) *agentv1.Pod {
		a := &agentv1.PodAddress{Address: addr(ip), ValidFromUnixNano: at(from)}
		if to != 0 {
			a.ValidToUnixNano = at(to)
		}
		return &agentv1.Pod{
			Uid: uid, Cluster: "prod", Namespace: "shop", Name: "web-" + uid, Node: "n1", Workload: "web", WorkloadKind: "Deployment",
			Addresses: []*agentv1.PodAddress{a}, SeenTimeUnixNano: at(seen),
		}
	}
	// In the order of writing, except that the last row is inserted first: a repetition
	// changes nothing.
	for i, p := range []*agentv1.Pod{pod("b", "10.0.0.1", 30, 0, 59), pod("a", "10.0.0.1", 1, 20, 20), pod("a", "10.0.0.1", 1, 0, 10), pod("c", "fd00::1", 5, 0, 50)} {
		pods := columns.NewPods()
		pods.Append(p, time.Unix(0, int64(p.SeenTimeUnixNano)))
		insert(string(rune('a'+i)), columns.TablePods, pods.Input(), pods.Rows())
	}
	got := queryText(t, d, `SELECT toString(ip), uid, pod, namespace, node, workload, workload_kind, toUnixTimestamp64Nano(valid_from) - `+
		queryInt(at(0))+`, valid_to > now() FROM `+cfg.Database+`.pods ORDER BY ip, valid_from`)
	want := "::ffff:10.0.0.1\ta\tweb-a\tshop\tn1\tweb\tDeployment\t60000000000\t0\n" +
		"::ffff:10.0.0.1\tb\tweb-b\tshop\tn1\tweb\tDeployment\t1800000000000\t1\n" +
		"fd00::1\tc\tweb-c\tshop\tn1\tweb\tDeployment\t300000000000\t1"
	if got != want {
		t.Errorf("pods:\n%s\nwant:\n%s", got, want)
	}
	// The query that pods are stored for.
	got = queryText(t, d, `SELECT pod FROM `+cfg.Database+`.pods WHERE ip = toIPv6('10.0.0.1') AND fromUnixTimestamp64Nano(`+queryInt(at(10))+
		`) BETWEEN valid_from AND valid_to`)
	if got != "web-a" {
		t.Errorf("the address was held by %q", got)
	}

	services := columns.NewServices()
	services.Append(&agentv1.Service{
		Cluster: "prod", Namespace: "shop", Name: "cart", Addresses: [][]byte{addr("10.96.0.1"), addr("203.0.113.1")},
		Ports: []*agentv1.ServicePort{{Port: 80}, {Port: 443}}, Endpoints: [][]byte{addr("10.0.0.1")}, StartTimeUnixNano: at(0), SeenTimeUnixNano: at(50),
	}, began)
	insert("s", columns.TableServices, services.Input(), services.Rows())
	got = queryText(t, d, "SELECT toString(ip), service, toString(ports), toString(endpoints), valid_to > now() FROM "+cfg.Database+".services ORDER BY ip")
	want = "::ffff:10.96.0.1\tcart\t[80,443]\t['::ffff:10.0.0.1']\t1\n::ffff:203.0.113.1\tcart\t[80,443]\t['::ffff:10.0.0.1']\t1"
	if got != want {
		t.Errorf("services:\n%s\nwant:\n%s", got, want)
	}

	status := &agentv1.AgentStatus{
		Registration:     &agentv1.Registration{AgentId: "x", Name: "n1", Host: "host", Addresses: []string{"10.0.0.9"}, Version: "v1", Cluster: "prod", StartTimeUnixNano: at(0)},
		Heartbeat:        &agentv1.Heartbeat{Revision: 7, Exceptions: []string{"it is tired"}},
		SeenTimeUnixNano: uint64(time.Now().UnixNano()), GroupId: "g-default000", Replica: "r",
	}
	agents := columns.NewAgents()
	agents.Append("x", status, began)
	agents.Append("gone", status, began)
	insert("a1", columns.TableAgents, agents.Input(), agents.Rows())
	agents = columns.NewAgents()
	agents.Append("gone", nil, began.Add(time.Second))
	insert("a2", columns.TableAgents, agents.Input(), agents.Rows())
	got = queryText(t, d, "SELECT agent_id, name, host, toString(addresses), version, cluster, group_id, revision, toString(exceptions), alive FROM "+cfg.Database+".agents")
	if want := "x\tn1\thost\t['::ffff:10.0.0.9']\tv1\tprod\tg-default000\t7\t['it is tired']\ttrue"; got != want {
		t.Errorf("agents:\n%s\nwant:\n%s", got, want)
	}
}

func queryInt(n uint64) string { return strconv.FormatUint(n, 10) }

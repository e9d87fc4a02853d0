package clickhouse

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// keyOf returns the key of the span in row i of spanBlock.
func keyOf(i int, start time.Time) signal.Key {
	k := signal.Key{Time: start.UnixNano()}
	traceID, spanID := traces.IDs(&k)
	binary.BigEndian.PutUint64(traceID[8:], uint64(i/4+1))
	binary.BigEndian.PutUint64(spanID, uint64(i+1))
	return k
}

func TestExistingSpansAreFoundByTheirKeys(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	ins := newInserter(t, cfg)
	// Over five hours, so the lookup takes several queries.
	start := func(i int) time.Time { return day(1).Add(time.Duration(i) * 6 * time.Second).Add(time.Duration(i)) }
	const rows = 3000
	if err := ins.Insert(t.Context(), 0, "spans_local", "token", spanBlock(rows, start), rows); err != nil {
		t.Fatal(err)
	}
	stored, asked := map[signal.Key]struct{}{}, []signal.Key(nil)
	for i := range rows {
		k := keyOf(i, start(i))
		stored[k] = struct{}{}
		asked = append(asked, k)
		if i%3 == 0 {
			sibling := k
			_, spanID := traces.IDs(&sibling)
			copy(spanID, []byte{9, 0, 0, 0, 0, 0, 0, 0})
			asked = append(asked,
				keyOf(i, start(i).Add(1)), // the same ids at another time
				keyOf(i+rows, start(i)),   // another trace at the same time
				sibling)                   // another span of the same trace
		}
	}
	got, err := d.Existing(t.Context(), 0, true, spansTable(), asked)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stored, got); diff != "" {
		t.Errorf("existing spans (-want +got):\n%s", diff[:min(len(diff), 2000)])
	}
	if got, err := d.Existing(t.Context(), 0, true, spansTable(), nil); err != nil || len(got) != 0 {
		t.Errorf("no keys: %v, %v", got, err)
	}
}

func TestLookupUsesThePrimaryKey(t *testing.T) {
	d := migrated(t, testConfig(t))
	mustExec(t, d, `INSERT INTO `+d.cfg.Database+`.spans_local (trace_id, span_id, start_time)
		SELECT lower(hex(sipHash128(number))), lower(hex(sipHash64(number))), toStartOfHour(now64(9, 'UTC')) - toIntervalMillisecond(25 * number) FROM numbers(400000)`)
	keys := []signal.Key{keyOf(1, time.Now().Add(-90*time.Minute)), keyOf(2, time.Now().Add(-89*time.Minute))}
	table := spansTable()
	var values []any
	for i := range keys {
		traceID, spanID := traces.IDs(&keys[i])
		values = append(values, traceID, spanID)
	}
	sql := strings.Replace(lookupSQL(d.cfg.Database, table, table.Lookup.Wanted(keys), keys), keysTable,
		fmt.Sprintf("(SELECT * FROM values('trace_id String, span_id FixedString(16)', ('%x', '%x'), ('%x', '%x')))", values...), 1)
	total := granules(t, d, "SELECT * FROM "+d.cfg.Database+".spans_local")
	if got := granules(t, d, sql); got > 8 {
		t.Errorf("reads %d of %d granules", got, total)
	}
}

func TestKeysAreAskedInChunks(t *testing.T) {
	hour := int64(time.Hour)
	many := make([]signal.Key, lookupKeys+1)
	tests := map[string]struct {
		keys []signal.Key
		want int
	}{
		"one":                   {[]signal.Key{{Time: 5}}, 1},
		"within an hour":        {[]signal.Key{{Time: 5}, {Time: 4 + hour}}, 2},
		"an hour apart":         {[]signal.Key{{Time: 5}, {Time: 5 + hour}}, 1},
		"more than one can ask": {many, lookupKeys},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := chunk(tc.keys); got != tc.want {
				t.Errorf("%d keys in a question, want %d", got, tc.want)
			}
		})
	}
}

func spansTable() *columns.Table {
	t := columns.TracesTable()
	return &t
}

func flowsTable() *columns.Table {
	t := columns.FlowsTable(nil)
	return &t
}

// flowOf returns flow i of TestExistingFlowsAreFoundByTheirKeys.
func flowOf(i int, end time.Time) flows.Identity {
	return flows.Identity{
		Agent: "agent-1", NetworkNamespace: uint64(i % 7), Connection: uint64(i + 1),
		End: end.UnixNano(), IP: netip.AddrFrom4([4]byte{10, 0, byte(i % 11), 1}).As16(),
	}
}

func TestExistingFlowsAreFoundByTheirKeys(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	ins := newInserter(t, cfg)
	end := func(i int) time.Time { return day(1).Add(time.Duration(i) * 6 * time.Second).Add(time.Duration(i)) }
	req := &agentv1.ExportFlowsRequest{AgentId: "agent-1"}
	stored, asked := map[signal.Key]struct{}{}, []signal.Key(nil)
	const rows = 3000
	for i := range rows {
		k := flowOf(i, end(i))
		stored[k.Key()] = struct{}{}
		ip := netip.AddrFrom16(k.IP).Unmap().As4()
		req.Groups = append(req.Groups, &agentv1.FlowGroup{NetworkNamespace: k.NetworkNamespace, Flows: []*agentv1.Flow{{
			StartTimeUnixNano: uint64(k.End), EndTimeUnixNano: uint64(k.End), LocalAddress: ip[:], LocalPort: 1, PeerAddress: ip[:], PeerPort: 1, Connection: k.Connection,
		}}})
		asked = append(asked, k.Key())
		if i%3 == 0 {
			agent, namespace := k, k
			agent.Agent, namespace.NetworkNamespace = "agent-2", 100
			later, other := flowOf(i, end(i).Add(1)), flowOf(i+rows, end(i))
			asked = append(asked, later.Key(), other.Key(), agent.Key(), namespace.Key())
		}
	}
	value, err := pb.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	block := columns.NewFlows(nil)
	if refused, err := block.Append(value, columns.Source{Window: signal.Window{Latest: 1 << 63}}); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	for range 2 {
		if err := ins.Insert(t.Context(), 0, block.Table(), "token", block.Input(), rows); err != nil {
			t.Fatal(err)
		}
	}
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".flows"); got != "3000" {
		t.Errorf("%s rows", got)
	}
	got, err := d.Existing(t.Context(), 0, true, flowsTable(), asked)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stored, got); diff != "" {
		t.Errorf("existing flows (-want +got):\n%s", diff[:min(len(diff), 2000)])
	}
	total := granules(t, d, "SELECT * FROM "+cfg.Database+".flows_local")
	table, first := flowsTable(), flows.IdentityOf(&asked[0])
	flowsSQL := strings.Replace(lookupSQL(cfg.Database, table, table.Lookup.Wanted(asked[:1]), asked[:1]), keysTable,
		fmt.Sprintf("(SELECT * FROM values('ip IPv6, connection UInt64', ('%s', %d)))", netip.AddrFrom16(first.IP), first.Connection), 1)
	if read := granules(t, d, flowsSQL); read > 2 {
		t.Errorf("reads %d of %d granules", read, total)
	}
	sent := map[string]bool{}
	for _, c := range block.Input() {
		sent[c.Name] = true
	}
	for _, name := range columnsOf(t, d, columns.TableFlows) {
		if !sent[name] {
			t.Errorf("column %s of the table is never filled", name)
		}
	}
}

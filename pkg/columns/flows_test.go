package columns_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// flowRow is one row of a block, decoded from its native format with ch-go's decoders.
type flowRow struct {
	Texts   map[string]string
	Numbers map[string]uint64
}

func readFlows(t *testing.T, f *columns.Flows) []flowRow {
	t.Helper()
	var buf proto.Buffer
	block := proto.Block{Rows: f.Rows(), Columns: len(f.Input())}
	if err := block.EncodeRawBlock(&buf, proto.Version, f.Input()); err != nil {
		t.Fatal(err)
	}
	texts, numbers, results := map[string]*proto.ColLowCardinality[string]{}, map[string]func(int) uint64{}, proto.Results{}
	ips, enums := map[string]*proto.ColIPv6{}, map[string]*proto.ColEnum{}
	for _, c := range f.Input() {
		var data proto.ColResult
		switch typ := c.Data.Type(); {
		case typ == "LowCardinality(String)":
			col := proto.NewLowCardinality(new(proto.ColStr))
			texts[c.Name], data = col, col
		case typ == "IPv6":
			col := new(proto.ColIPv6)
			ips[c.Name], data = col, col
		case typ.Base() == proto.ColumnTypeEnum8:
			col := new(proto.ColEnum)
			enums[c.Name], data = col, col
		case typ == "UInt16":
			col := new(proto.ColUInt16)
			numbers[c.Name], data = func(i int) uint64 { return uint64(col.Row(i)) }, col
		case typ == "UInt32":
			col := new(proto.ColUInt32)
			numbers[c.Name], data = func(i int) uint64 { return uint64(col.Row(i)) }, col
		case typ == "UInt64":
			col := new(proto.ColUInt64)
			numbers[c.Name], data = func(i int) uint64 { return col.Row(i) }, col
		default:
			col := new(proto.ColDateTime64)
			numbers[c.Name], data = func(i int) uint64 { return uint64(col.Row(i).UnixNano()) }, col
		}
		results = append(results, proto.ResultColumn{Name: c.Name, Data: data})
	}
	if err := block.DecodeRawBlock(proto.NewReader(bytes.NewReader(buf.Buf)), proto.Version, results); err != nil {
		t.Fatal(err)
	}
	rows := make([]flowRow, f.Rows())
	for i := range rows {
		rows[i] = flowRow{map[string]string{}, map[string]uint64{}}
		for name, col := range texts {
			if text := col.Row(i); text != "" {
				rows[i].Texts[name] = text
			}
		}
		for name, col := range ips {
			rows[i].Texts[name] = col.Row(i).ToIP().Unmap().String()
		}
		for name, col := range enums {
			rows[i].Texts[name] = col.Row(i)
		}
		for name, number := range numbers {
			if n := number(i); n != 0 {
				rows[i].Numbers[name] = n
			}
		}
	}
	return rows
}

// Every field of the message has its column.
func TestFlowColumns(t *testing.T) {
	const start, end = 1_700_000_000_000_000_001, 1_700_000_010_000_000_002
	req := &agentv1.ExportFlowsRequest{AgentId: "agent-1", Cluster: "test", Node: "node-1", Groups: []*agentv1.FlowGroup{
		{
			NetworkNamespace: 1 << 63, PodUid: "uid", Pod: "cart-1", Namespace: "shop", Workload: "cart", ContainerId: "c0ffee", Container: "server", Process: "java",
			Flows: []*agentv1.Flow{{
				StartTimeUnixNano: start, EndTimeUnixNano: end, LocalAddress: []byte{10, 0, 0, 1}, LocalPort: 40000,
				PeerAddress: netip.MustParseAddr("2001:db8::1").AsSlice(), PeerPort: 443, Role: 1, State: 2, End: 3, Connection: 1<<64 - 1,
				Connections: 1, ConnectFailures: 1, Resets: 1, Timeouts: 1, BytesSent: 11, BytesReceived: 12, Retransmits: 13,
				RetransmittedBytes: 14, SegmentsSent: 15, RttUs: 16, RttMinUs: 17, ReceiveWindowLimitedUs: 18, SendBufferLimitedUs: 19, BusyUs: 20,
				Protocol: 1, PeerName: []byte("cart.shop.svc"), TranslatedAddress: []byte{10, 0, 0, 3}, TranslatedPort: 21,
				TranslatedPeerAddress: netip.MustParseAddr("2001:db8::3").AsSlice(), TranslatedPeerPort: 22, RttUsualUs: 23, RttMaxUs: 24, QueueUs: 25,
				Refused: 1, GaveUp: 1, AcceptQueueFull: 26, UnreadBytes: 27, UnsentBytes: 28, RetransmitTimeoutUs: 29,
				Queries: 30, QueryFailures: 31, QueriesUnanswered: 32, QueryTimeUs: 33, QueryTimeMaxUs: 34, QueryCode: []byte("NXDOMAIN"),
			}},
		},
		{Flows: []*agentv1.Flow{{
			StartTimeUnixNano: start, EndTimeUnixNano: start, LocalAddress: make([]byte, 4), LocalPort: 1,
			PeerAddress: []byte{10, 0, 0, 2}, Role: 2, State: 1, End: 4, Connection: 1,
		}}},
	}}
	f := columns.NewFlows(func(cluster string, address netip.Addr, at uint64) index.Holder {
		if cluster != "test" || at != end {
			return index.Holder{}
		}
		return index.Holder{Kind: index.Pod, Node: "node-2", Namespace: "edge", Name: "pod " + address.String(), UID: "other", Workload: "proxy"}
	})
	refused, err := f.Append(marshal(t, req), columns.Source{Window: everything})
	if err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	want := []flowRow{
		{
			map[string]string{
				"agent_id": "agent-1", "cluster": "test", "node": "node-1", "pod_uid": "uid", "pod": "cart-1", "namespace": "shop", "workload": "cart",
				"container_id": "c0ffee", "container": "server", "process": "java", "ip": "10.0.0.1", "peer_ip": "2001:db8::1",
				"peer_node": "node-2", "peer_namespace": "edge", "peer_pod": "pod 2001:db8::1", "peer_pod_uid": "other", "peer_workload": "proxy",
				"role": "client", "state": "closed", "end_reason": "timed out", "protocol": "dns", "peer_name": "cart.shop.svc", "query_code": "NXDOMAIN",
				"translated_ip": "10.0.0.3", "translated_peer_ip": "2001:db8::3",
			},
			map[string]uint64{
				"start_time": start, "time": end, "port": 40000, "peer_port": 443, "network_namespace": 1 << 63, "connection": 1<<64 - 1,
				"connections": 1, "connect_failures": 1, "resets": 1, "timeouts": 1, "bytes_sent": 11, "bytes_received": 12, "retransmits": 13,
				"retransmitted_bytes": 14, "segments_sent": 15, "rtt_us": 16, "rtt_min_us": 17, "receive_window_limited_us": 18, "send_buffer_limited_us": 19, "busy_us": 20,
				"translated_port": 21, "translated_peer_port": 22, "rtt_usual_us": 23, "rtt_max_us": 24, "queue_us": 25, "refused": 1, "gave_up": 1,
				"accept_queue_full": 26, "unread_bytes": 27, "unsent_bytes": 28, "retransmit_timeout_us": 29, "queries": 30, "query_failures": 31,
				"queries_unanswered": 32, "query_time_us": 33, "query_time_max_us": 34,
			},
		},
		{
			map[string]string{
				"agent_id": "agent-1", "cluster": "test", "node": "node-1", "ip": "::", "peer_ip": "10.0.0.2",
				"role": "server", "state": "living", "end_reason": "connect failed", "protocol": "tcp", "translated_ip": "::", "translated_peer_ip": "::",
			},
			map[string]uint64{"start_time": start, "time": start, "port": 1, "connection": 1},
		},
	}
	if diff := cmp.Diff(want, readFlows(t, f)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The holders of the ends are resolved where the agent does not name them.
func TestFlowEndsAreLookedUp(t *testing.T) {
	pod := index.Holder{Kind: index.Pod, Namespace: "shop", Name: "cart-1", UID: "uid", Node: "node-1", Workload: "cart"}
	known := map[string]index.Holder{
		"10.0.0.1": pod,
		"10.0.0.2": {Kind: index.Service, Namespace: "shop", Name: "redis"},
		"10.0.0.3": {Kind: index.Node, Name: "node-3", Node: "node-3"},
	}
	tests := map[string]struct {
		group       *agentv1.FlowGroup
		local, peer byte
		want        map[string]string
	}{
		"a pod calls a service": {
			&agentv1.FlowGroup{ContainerId: "c"}, 1, 2,
			map[string]string{
				"pod_uid": "uid", "pod": "cart-1", "namespace": "shop", "workload": "cart", "container_id": "c",
				"peer_service": "redis", "peer_namespace": "shop",
			},
		},
		"the agent knows the uid": {
			&agentv1.FlowGroup{PodUid: "uid"}, 1, 9,
			map[string]string{"pod_uid": "uid", "pod": "cart-1", "namespace": "shop", "workload": "cart"},
		},
		"another pod in the network of the first": {&agentv1.FlowGroup{PodUid: "another"}, 1, 9, map[string]string{"pod_uid": "another"}},
		"the agent knows it all": {
			&agentv1.FlowGroup{PodUid: "u", Pod: "p", Namespace: "n", Workload: "w"}, 1, 1,
			map[string]string{
				"pod_uid": "u", "pod": "p", "namespace": "n", "workload": "w",
				"peer_pod": "cart-1", "peer_pod_uid": "uid", "peer_namespace": "shop", "peer_workload": "cart", "peer_node": "node-1",
			},
		},
		"a node calls a node": {&agentv1.FlowGroup{}, 3, 3, map[string]string{"peer_node": "node-3"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			tc.group.Flows = []*agentv1.Flow{{
				StartTimeUnixNano: 1, EndTimeUnixNano: 1, LocalAddress: []byte{10, 0, 0, tc.local}, LocalPort: 1,
				PeerAddress: []byte{10, 0, 0, tc.peer}, PeerPort: 1, Connection: 1,
			}}
			f := columns.NewFlows(func(_ string, address netip.Addr, _ uint64) index.Holder { return known[address.String()] })
			req := &agentv1.ExportFlowsRequest{AgentId: "a", Groups: []*agentv1.FlowGroup{tc.group}}
			_, err := f.Append(marshal(t, req), columns.Source{Window: everything})
			if err != nil {
				t.Fatal(err)
			}
			got := readFlows(t, f)[0].Texts
			for _, name := range []string{"agent_id", "ip", "peer_ip", "role", "state", "end_reason", "protocol", "translated_ip", "translated_peer_ip"} {
				delete(got, name)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFlowsAreRefusedAndSkipped(t *testing.T) {
	req := otlptest.NewFlows(1, time.Time{}).Request(90)
	req.Groups[0].Flows[1].PeerPort = 0
	req.Groups[5].Flows[0].EndTimeUnixNano = 0
	value := marshal(t, req)
	f := columns.NewFlows(nil)
	var keys []signal.Key
	refused, err := f.Append(value, columns.Source{Window: everything, Skip: func(index int, key signal.Key) bool {
		if index%2 == 0 {
			return true
		}
		keys = append(keys, key)
		return false
	}})
	if err != nil {
		t.Fatal(err)
	}
	wantRefused := []signal.Refused{{Index: 1, Reason: flows.Signal.Label(flows.BadPort)}, {Index: 15, Reason: flows.Signal.Label(flows.BadOrder)}}
	if diff := cmp.Diff(wantRefused, refused); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	if f.Rows() != 45-2 || len(readFlows(t, f)) != f.Rows() {
		t.Errorf("%d rows", f.Rows())
	}
	var got []signal.Key
	f.Keys(func(key signal.Key) { got = append(got, key) })
	if diff := cmp.Diff(keys, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	first := req.GetGroups()[1].GetFlows()[0]
	id := flows.IdentityOf(&keys[0])
	if id.Connection != first.GetConnection() || uint64(id.End) != first.GetEndTimeUnixNano() || id.Agent != req.GetAgentId() ||
		id.NetworkNamespace != req.GetGroups()[1].GetNetworkNamespace() || netip.AddrFrom16(id.IP).Unmap() != netip.AddrFrom4([4]byte(first.GetLocalAddress())) {
		t.Errorf("identity %+v of %v", id, first)
	}
}

func TestMalformedFlowsAppendNothing(t *testing.T) {
	good := otlptest.NewFlows(1, time.Time{}).RequestBytes(10)
	bad := append(bytes.Clone(good), protowire.AppendTag(nil, 4, protowire.BytesType)...)
	f := columns.NewFlows(nil)
	if _, err := f.Append(bad, columns.Source{Window: everything}); !errors.Is(err, signal.ErrMalformed) || f.Rows() != 0 {
		t.Errorf("%d rows, %v", f.Rows(), err)
	}
	for range 3 {
		if _, err := f.Append(good, columns.Source{Window: everything}); err != nil || f.Rows() != 10 || f.Bytes() < 10*200 {
			t.Errorf("%d rows, %d bytes, %v", f.Rows(), f.Bytes(), err)
		}
		readFlows(t, f)
		f.Reset()
	}
}

// FuzzFlows checks that no bytes panic, and that accepted flows have all their rows in
// all columns.
func FuzzFlows(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(otlptest.NewFlows(1, time.Time{}).RequestBytes(3))
	f.Fuzz(func(t *testing.T, in []byte) {
		block := columns.NewFlows(nil)
		refused, err := block.Append(in, columns.Source{Window: everything})
		if err != nil {
			return
		}
		if n := flows.Signal.Count(in); block.Rows()+len(refused) != n {
			t.Fatalf("%d rows and %d refused of %d flows", block.Rows(), len(refused), n)
		}
		for _, c := range block.Input() {
			if c.Data.Rows() != block.Rows() {
				t.Fatalf("column %s has %d rows of %d", c.Name, c.Data.Rows(), block.Rows())
			}
		}
	})
}

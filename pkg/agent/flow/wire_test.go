package flow

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// TestAppendWire compares AppendWire with the official protobuf runtime, byte
// by byte and as a message.
func TestAppendWire(t *testing.T) {
	for name, tc := range map[string]struct {
		row  Row
		want *agentv1.Flow
	}{
		"everything": {
			Row{
				Start: 1, End: 2, Namespace: 3, Cookie: 4, Cgroup: 5, UID: 6,
				Local: ap("10.0.0.1:7"), Peer: ap("[2001:db8::1]:8"), Role: RoleServer, Closed: true, Reason: EndTimedOut,
				Connections: 9, ConnectFailures: 10, Resets: 11, Timeouts: 12,
				Counters: Counters{
					BytesSent: 13, BytesReceived: 14, Retransmits: 15, RetransmittedBytes: 16,
					SegmentsSent: 17, Busy: 18, ReceiveWindowLimited: 19, SendBufferLimited: 20,
					RetransmitTimeout: 23,
				},
				RTT: 21, MinRTT: 22, MaxRTT: 24, UsualRTT: 25, Queue: 26, Refused: 27, GaveUp: 28, AcceptQueueFull: 29, UnreadBytes: 30, UnsentBytes: 31,
				Protocol: ProtocolDNS, PeerName: "cart.shop.svc", Translated: ap("192.0.2.1:32"), TranslatedPeer: ap("[2001:db8::2]:33"),
				Queries: Queries{Asked: 34, Failed: 35, Unanswered: 36, Time: 37, MaxTime: 38, Code: "NXDOMAIN"},
			},
			&agentv1.Flow{
				StartTimeUnixNano: 1, EndTimeUnixNano: 2, Connection: 4,
				LocalAddress: []byte{10, 0, 0, 1}, LocalPort: 7,
				PeerAddress: []byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, PeerPort: 8,
				Role: agentv1.FlowRole_FLOW_ROLE_SERVER, State: agentv1.FlowState_FLOW_STATE_CLOSED, End: agentv1.FlowEnd_FLOW_END_TIMED_OUT,
				Connections: 9, ConnectFailures: 10, Resets: 11, Timeouts: 12,
				BytesSent: 13, BytesReceived: 14, Retransmits: 15, RetransmittedBytes: 16, SegmentsSent: 17,
				BusyUs: 18, ReceiveWindowLimitedUs: 19, SendBufferLimitedUs: 20, RttUs: 21, RttMinUs: 22,
				RetransmitTimeoutUs: 23, RttMaxUs: 24, RttUsualUs: 25, QueueUs: 26, Refused: 27, GaveUp: 28, AcceptQueueFull: 29, UnreadBytes: 30, UnsentBytes: 31,
				Protocol: agentv1.FlowProtocol_FLOW_PROTOCOL_DNS, PeerName: []byte("cart.shop.svc"), TranslatedAddress: []byte{192, 0, 2, 1}, TranslatedPort: 32,
				TranslatedPeerAddress: []byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}, TranslatedPeerPort: 33,
				Queries: 34, QueryFailures: 35, QueriesUnanswered: 36, QueryTimeUs: 37, QueryTimeMaxUs: 38, QueryCode: []byte("NXDOMAIN"),
			},
		},
		"little": {
			Row{Start: 1, End: 1, Cookie: 1, Local: ap("0.0.0.0:1"), Peer: ap("10.0.0.1:0"), Role: RoleClient},
			&agentv1.Flow{
				StartTimeUnixNano: 1, EndTimeUnixNano: 1, Connection: 1,
				LocalAddress: make([]byte, 4), LocalPort: 1, PeerAddress: []byte{10, 0, 0, 1},
				Role: agentv1.FlowRole_FLOW_ROLE_CLIENT, State: agentv1.FlowState_FLOW_STATE_LIVING,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.row.AppendWire(nil)
			var message agentv1.Flow
			if err := proto.Unmarshal(got, &message); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, &message, protocmp.Transform()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
			want, err := proto.MarshalOptions{Deterministic: true}.Marshal(tc.want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("bytes (-want +got):\n%s", diff)
			}
		})
	}
}

// BenchmarkTable10000 feeds a table dumps of 10,000 living sockets.
func BenchmarkTable10000(b *testing.B) {
	const n = 10_000
	sockets := make([]Socket, n)
	for i := range sockets {
		sockets[i] = living(uint64(i+1), 1000)
		sockets[i].Local = netip.AddrPortFrom(sockets[i].Local.Addr(), uint16(i+1))
	}
	tab := opened(Config{})
	second := 0
	var rows []Row
	b.ReportAllocs()
	for b.Loop() {
		second += 10
		dump(tab, second, sockets...)
		rows = tab.Take(rows[:0])
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "sockets/s")
}

// BenchmarkDestroyed feeds a table short connections and marshals the rows.
func BenchmarkDestroyed(b *testing.B) {
	tab := opened(Config{})
	s := closed(living(1, 1000))
	var rows []Row
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		s.Cookie++
		tab.Destroyed(at(5), ns, &s)
		if s.Cookie%1000 == 0 {
			rows, out = tab.Take(rows[:0]), out[:0]
			for i := range rows {
				out = rows[i].AppendWire(out)
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "connections/s")
}

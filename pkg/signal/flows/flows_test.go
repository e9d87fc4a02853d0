package flows_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

var (
	now    = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	window = signal.WindowAt(now, 7*24*time.Hour, time.Hour)
)

func options() signal.Options {
	return signal.Options{Partitions: 8, Window: window, MaxRecordBytes: 900 << 10}
}

// newFlow is an acceptable flow; edit changes it.
func newFlow(connection uint64, edit ...func(*agentv1.Flow)) *agentv1.Flow {
	f := &agentv1.Flow{
		StartTimeUnixNano: uint64(now.Add(-time.Minute).UnixNano()), EndTimeUnixNano: uint64(now.UnixNano()),
		LocalAddress: []byte{10, 0, 0, 1}, LocalPort: 30000 + uint32(connection), PeerAddress: []byte{10, 0, 0, 2}, PeerPort: 80,
		Role: agentv1.FlowRole_FLOW_ROLE_CLIENT, State: agentv1.FlowState_FLOW_STATE_LIVING, Connection: connection, BytesSent: 1000,
	}
	for _, e := range edit {
		e(f)
	}
	return f
}

func newRequest(fs ...*agentv1.Flow) *agentv1.ExportFlowsRequest {
	return &agentv1.ExportFlowsRequest{AgentId: "agent-1", Cluster: "test", Node: "node-1", Groups: []*agentv1.FlowGroup{{
		NetworkNamespace: 4026531840, PodUid: "uid", Pod: "cart-1", Namespace: "shop", Workload: "cart", ContainerId: "c0ffee",
		Container: "server", Process: "java", Flows: fs,
	}}}
}

// fataler is what helpers need of a testing.TB or a rapid.T.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func marshal(t fataler, req *agentv1.ExportFlowsRequest) []byte {
	t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unmarshal(t fataler, b []byte) *agentv1.ExportFlowsRequest {
	t.Helper()
	var req agentv1.ExportFlowsRequest
	if err := proto.Unmarshal(b, &req); err != nil {
		t.Fatal("a record is no request:", err)
	}
	return &req
}

// flat lists every flow with its request's and group's fields, each as a request of its own in
// deterministic bytes: what must survive a split.
func flat(t fataler, req *agentv1.ExportFlowsRequest, keep func(*agentv1.Flow) bool) []string {
	t.Helper()
	var out []string
	for _, g := range req.GetGroups() {
		for _, f := range g.GetFlows() {
			if !keep(f) {
				continue
			}
			group := proto.CloneOf(g)
			group.Flows = []*agentv1.Flow{f}
			one := &agentv1.ExportFlowsRequest{AgentId: req.GetAgentId(), Cluster: req.GetCluster(), Node: req.GetNode(), Groups: []*agentv1.FlowGroup{group}}
			one.ProtoReflect().SetUnknown(req.ProtoReflect().GetUnknown())
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(one)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
	}
	return out
}

func every(*agentv1.Flow) bool { return true }

func acceptable(f *agentv1.Flow) bool { return read(f).Judge(window) == signal.Accepted }

// read is what flowwire should make of a message.
func read(f *agentv1.Flow) *flows.Flow {
	return &flows.Flow{
		Start: f.GetStartTimeUnixNano(), End: f.GetEndTimeUnixNano(), Local: f.GetLocalAddress(), Peer: f.GetPeerAddress(),
		LocalPort: f.GetLocalPort(), PeerPort: f.GetPeerPort(),
		Role: uint32(f.GetRole()), State: uint32(f.GetState()), Reason: uint32(f.GetEnd()), Connection: f.GetConnection(),
		Connections: f.GetConnections(), ConnectFailures: f.GetConnectFailures(), Resets: f.GetResets(), Timeouts: f.GetTimeouts(),
		RTT: f.GetRttUs(), MinRTT: f.GetRttMinUs(), BytesSent: f.GetBytesSent(), BytesReceived: f.GetBytesReceived(),
		Retransmits: f.GetRetransmits(), RetransmittedBytes: f.GetRetransmittedBytes(), SegmentsSent: f.GetSegmentsSent(),
		ReceiveWindowLimited: f.GetReceiveWindowLimitedUs(), SendBufferLimited: f.GetSendBufferLimitedUs(), Busy: f.GetBusyUs(),
		Protocol: uint32(f.GetProtocol()), PeerName: f.GetPeerName(),
		Translated: f.GetTranslatedAddress(), TranslatedPort: f.GetTranslatedPort(), TranslatedPeer: f.GetTranslatedPeerAddress(), TranslatedPeerPort: f.GetTranslatedPeerPort(),
		UsualRTT: f.GetRttUsualUs(), MaxRTT: f.GetRttMaxUs(), Queue: f.GetQueueUs(),
		Refused: f.GetRefused(), GaveUp: f.GetGaveUp(), AcceptQueueFull: f.GetAcceptQueueFull(),
		UnreadBytes: f.GetUnreadBytes(), UnsentBytes: f.GetUnsentBytes(), RetransmitTimeout: f.GetRetransmitTimeoutUs(),
		Queries: f.GetQueries(), QueryFailures: f.GetQueryFailures(), QueriesUnanswered: f.GetQueriesUnanswered(),
		QueryTime: f.GetQueryTimeUs(), MaxQueryTime: f.GetQueryTimeMaxUs(), QueryCode: f.GetQueryCode(),
	}
}

func TestSplitKeepsWholeRequest(t *testing.T) {
	req := newRequest(newFlow(1), newFlow(1), newFlow(1))
	records, rejected, err := flows.Signal.NewSplitter().Split(marshal(t, req), options())
	if err != nil || rejected.Total() != 0 {
		t.Fatalf("Split: %v, rejected %v", err, rejected)
	}
	if len(records) != 1 || records[0].Items != 3 {
		t.Fatalf("one connection gave %d records: %+v", len(records), records)
	}
	if diff := cmp.Diff(req, unmarshal(t, records[0].Value), protocmp.Transform()); diff != "" {
		t.Errorf("the record differs from the request (-want +got):\n%s", diff)
	}
}

func TestSplitEmptyRequest(t *testing.T) {
	for name, req := range map[string]*agentv1.ExportFlowsRequest{"nothing": {}, "no groups": {AgentId: "a"}, "no flows": newRequest()} {
		records, rejected, err := flows.Signal.NewSplitter().Split(marshal(t, req), options())
		if err != nil || len(records) != 0 || rejected.Total() != 0 {
			t.Errorf("%s: %d records, rejected %v, %v", name, len(records), rejected, err)
		}
	}
}

// Both ends of a connection meet in one partition, whatever addresses are written like.
func TestBothEndsMeet(t *testing.T) {
	client := newFlow(7)
	server := newFlow(8, func(f *agentv1.Flow) {
		f.LocalAddress, f.PeerAddress = client.GetPeerAddress(), client.GetLocalAddress()
		f.LocalPort, f.PeerPort = client.GetPeerPort(), client.GetLocalPort()
	})
	mapped := newFlow(9, func(f *agentv1.Flow) {
		a, b := netip.AddrFrom4([4]byte(client.GetLocalAddress())).As16(), netip.AddrFrom4([4]byte(client.GetPeerAddress())).As16()
		f.LocalAddress, f.PeerAddress, f.LocalPort = a[:], b[:], client.GetLocalPort()
	})
	opts := options()
	opts.Partitions = 1000
	records, _, err := flows.Signal.NewSplitter().Split(marshal(t, newRequest(client, server, mapped)), opts)
	if err != nil || len(records) != 1 || records[0].Items != 3 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	if want := int(flows.Hash(netip.MustParseAddrPort("10.0.0.1:30007"), netip.MustParseAddrPort("10.0.0.2:80")) % 1000); records[0].Partition != want {
		t.Errorf("partition %d, want %d", records[0].Partition, want)
	}
}

func TestJudge(t *testing.T) {
	mappedZero := netip.MustParseAddr("::ffff:0.0.0.0").AsSlice()
	forgotten := func(f *agentv1.Flow) { f.LocalAddress, f.PeerPort = make([]byte, 4), 0 }
	listener := func(f *agentv1.Flow) {
		f.LocalAddress, f.LocalPort, f.PeerAddress, f.PeerPort = make([]byte, 16), 80, make([]byte, 16), 0
		f.Role, f.AcceptQueueFull = agentv1.FlowRole_FLOW_ROLE_SERVER, 1
	}
	address := func(f *agentv1.Flow) {
		f.LocalPort, f.PeerAddress, f.PeerPort, f.Role = 0, make([]byte, 16), 0, agentv1.FlowRole_FLOW_ROLE_UNSPECIFIED
	}
	query := func(f *agentv1.Flow) {
		f.Protocol, f.LocalPort, f.PeerPort, f.PeerName = agentv1.FlowProtocol_FLOW_PROTOCOL_DNS, 0, 53, []byte("cart.shop.svc")
	}
	tests := map[string]struct {
		edit func(*agentv1.Flow)
		want signal.Reason
	}{
		"as it should be":        {func(*agentv1.Flow) {}, signal.Accepted},
		"nothing known":          {func(f *agentv1.Flow) { f.Role, f.State = 0, 0 }, signal.Accepted},
		"a moment":               {func(f *agentv1.Flow) { f.StartTimeUnixNano = f.EndTimeUnixNano }, signal.Accepted},
		"starts too early":       {func(f *agentv1.Flow) { f.StartTimeUnixNano = window.Earliest - 1 }, flows.BadStartTime},
		"ends too late":          {func(f *agentv1.Flow) { f.EndTimeUnixNano = window.Latest + 1 }, flows.BadEndTime},
		"ends at the latest":     {func(f *agentv1.Flow) { f.EndTimeUnixNano = window.Latest }, signal.Accepted},
		"starts at the earliest": {func(f *agentv1.Flow) { f.StartTimeUnixNano = window.Earliest }, signal.Accepted},
		"no times":               {func(f *agentv1.Flow) { f.StartTimeUnixNano, f.EndTimeUnixNano = 0, 0 }, flows.BadStartTime},
		"ends before it starts":  {func(f *agentv1.Flow) { f.EndTimeUnixNano = f.StartTimeUnixNano - 1 }, flows.BadOrder},
		"IPv6": {func(f *agentv1.Flow) {
			f.LocalAddress, f.PeerAddress = []byte("0123456789abcdef"), []byte("fedcba9876543210")
		}, signal.Accepted},
		"no address":                       {func(f *agentv1.Flow) { f.LocalAddress = nil }, flows.BadAddress},
		"an address of five bytes":         {func(f *agentv1.Flow) { f.PeerAddress = []byte{1, 2, 3, 4, 5} }, flows.BadAddress},
		"unspecified without need":         {func(f *agentv1.Flow) { f.LocalAddress = make([]byte, 4) }, flows.BadAddress},
		"peer unspecified":                 {func(f *agentv1.Flow) { f.PeerAddress, f.End = make([]byte, 16), 4 }, flows.BadAddress},
		"unspecified and mapped":           {func(f *agentv1.Flow) { f.LocalAddress = mappedZero }, flows.BadAddress},
		"peer unspecified and mapped":      {func(f *agentv1.Flow) { f.PeerAddress, f.End = mappedZero, 4 }, flows.BadAddress},
		"a failed connect, ends forgotten": {func(f *agentv1.Flow) { forgotten(f); f.End = 4 }, signal.Accepted},
		"a reset, ends forgotten":          {func(f *agentv1.Flow) { forgotten(f); f.End = 2 }, signal.Accepted},
		"an orderly end, peer port 0":      {func(f *agentv1.Flow) { f.PeerPort, f.End = 0, 1 }, flows.BadPort},
		"no local port":                    {func(f *agentv1.Flow) { f.LocalPort, f.End = 0, 4 }, flows.BadPort},
		"a port of 17 bits":                {func(f *agentv1.Flow) { f.PeerPort = 65536 }, flows.BadPort},
		"a role of the future":             {func(f *agentv1.Flow) { f.Role = 3 }, flows.BadEnum},
		"a negative state":                 {func(f *agentv1.Flow) { f.State = -1 }, flows.BadEnum},
		"an end of the future":             {func(f *agentv1.Flow) { f.End = 5 }, flows.BadEnum},
		"no connection":                    {func(f *agentv1.Flow) { f.Connection = 0 }, flows.BadConnection},
		"two connections in one":           {func(f *agentv1.Flow) { f.Connections = 2 }, flows.BadCounter},
		"a listener":                       {listener, signal.Accepted},
		"a listener at an address":         {func(f *agentv1.Flow) { listener(f); f.LocalAddress = []byte{10, 0, 0, 1} }, signal.Accepted},
		"a listener without a port":        {func(f *agentv1.Flow) { listener(f); f.LocalPort = 0 }, flows.BadPort},
		"a listener that is not full":      {func(f *agentv1.Flow) { listener(f); f.AcceptQueueFull = 0 }, flows.BadAddress},
		"an address":                       {address, signal.Accepted},
		"an address that is none":          {func(f *agentv1.Flow) { address(f); f.LocalAddress = make([]byte, 4) }, flows.BadAddress},
		"queries":                          {query, signal.Accepted},
		"queries from one port":            {func(f *agentv1.Flow) { query(f); f.LocalPort = 40000 }, signal.Accepted},
		"queries to nobody":                {func(f *agentv1.Flow) { query(f); f.PeerAddress = make([]byte, 4) }, flows.BadAddress},
		"queries to port 0":                {func(f *agentv1.Flow) { query(f); f.PeerPort = 0 }, flows.BadPort},
		"a protocol of the future":         {func(f *agentv1.Flow) { f.Protocol = 2 }, flows.BadEnum},
		"the longest name":                 {func(f *agentv1.Flow) { f.PeerName = bytes.Repeat([]byte("n"), flows.MaxName) }, signal.Accepted},
		"too long a name":                  {func(f *agentv1.Flow) { f.PeerName = bytes.Repeat([]byte("n"), flows.MaxName+1) }, flows.BadName},
		"a name that is not UTF-8":         {func(f *agentv1.Flow) { f.PeerName = []byte("a\xff") }, flows.BadName},
		"a name with a line break":         {func(f *agentv1.Flow) { f.PeerName = []byte("a\nb") }, flows.BadName},
		"too long a code":                  {func(f *agentv1.Flow) { f.QueryCode = bytes.Repeat([]byte("n"), flows.MaxName+1) }, flows.BadName},
		"translated": {func(f *agentv1.Flow) {
			f.TranslatedAddress, f.TranslatedPeerAddress = make([]byte, 16), []byte{10, 0, 0, 7}
		}, signal.Accepted},
		"translated to five bytes":         {func(f *agentv1.Flow) { f.TranslatedAddress = []byte{1, 2, 3, 4, 5} }, flows.BadTranslation},
		"the peer translated to two bytes": {func(f *agentv1.Flow) { f.TranslatedPeerAddress = []byte{1, 2} }, flows.BadTranslation},
		"translated to a port of 17 bits":  {func(f *agentv1.Flow) { f.TranslatedPort = 65536 }, flows.BadTranslation},
		"refused twice":                    {func(f *agentv1.Flow) { f.Refused = 2 }, flows.BadCounter},
		"gave up twice":                    {func(f *agentv1.Flow) { f.GaveUp = 2 }, flows.BadCounter},
		"unread bytes that were negative":  {func(f *agentv1.Flow) { f.UnreadBytes = 1<<64 - 5 }, flows.BadCounter},
		"a counter that was negative":      {func(f *agentv1.Flow) { f.BytesReceived = 1<<64 - 5 }, flows.BadCounter},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFlow(1, tc.edit)
			if got := read(f).Judge(window); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
			_, rejected, err := flows.Signal.NewSplitter().Split(marshal(t, newRequest(newFlow(2), f)), options())
			if err != nil || (rejected.Total() == 1) != (tc.want != signal.Accepted) || tc.want != signal.Accepted && rejected.Count[tc.want] != 1 {
				t.Errorf("Split rejected %v, %v", rejected, err)
			}
			if text := flows.Signal.Explain(&rejected, window, 1000); (text != "") != (tc.want != signal.Accepted) || strings.HasSuffix(text, ": ") {
				t.Errorf("message %q", text)
			}
		})
	}
}

func TestTooLarge(t *testing.T) {
	big := newFlow(1)
	big.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 100, protowire.BytesType), make([]byte, 2000)))
	opts := options()
	opts.MaxRecordBytes = 1000
	records, rejected, err := flows.Signal.NewSplitter().Split(marshal(t, newRequest(newFlow(2), big, newFlow(3))), opts)
	if err != nil || rejected.Count[signal.TooLarge] != 1 || rejected.Total() != 1 {
		t.Fatalf("rejected %v, %v", rejected, err)
	}
	kept := 0
	for _, r := range records {
		kept += r.Items
	}
	if kept != 2 {
		t.Errorf("%d flows kept", kept)
	}
	if text := flows.Signal.Explain(&rejected, window, 1000); !strings.Contains(text, "larger than 1000 bytes") {
		t.Errorf("message %q", text)
	}
}

// Fields of a request and of a group are repeated in every record. Whoever makes them so large that
// each flow needs a record of its own gets no more than a few times the memory of the request.
func TestRepeatedFieldsAreBounded(t *testing.T) {
	for name, build := range map[string]func(fs []*agentv1.Flow) *agentv1.ExportFlowsRequest{
		"of the request": func(fs []*agentv1.Flow) *agentv1.ExportFlowsRequest {
			return &agentv1.ExportFlowsRequest{AgentId: "a", Cluster: strings.Repeat("c", 99_000), Groups: []*agentv1.FlowGroup{{Flows: fs}}}
		},
		"of groups": func(fs []*agentv1.Flow) *agentv1.ExportFlowsRequest {
			req := &agentv1.ExportFlowsRequest{AgentId: "a"}
			for i := range 20 {
				req.Groups = append(req.Groups, &agentv1.FlowGroup{Process: strings.Repeat("p", 50_000), Flows: fs[50*i : 50*(i+1)]})
			}
			return req
		},
	} {
		t.Run(name, func(t *testing.T) {
			var fs []*agentv1.Flow
			for i := range uint64(1000) {
				fs = append(fs, newFlow(i+1, func(f *agentv1.Flow) { f.LocalPort = uint32(1000 + i) }))
			}
			opts := options()
			opts.Partitions, opts.MaxRecordBytes = 50, 100_000
			req := marshal(t, build(fs))
			records, rejected, err := flows.Signal.NewSplitter().Split(req, opts)
			if err != nil {
				t.Fatal(err)
			}
			size, kept := 0, int64(0)
			for _, r := range records {
				size += len(r.Value)
				kept += int64(r.Items)
				if n := flows.Signal.Count(r.Value); n != r.Items {
					t.Errorf("%d flows in a record of %d", n, r.Items)
				}
			}
			if limit := 2*len(req) + 2<<20; size > limit {
				t.Errorf("a request of %d bytes becomes %d", len(req), size)
			}
			if kept == 0 || kept+rejected.Count[signal.TooLarge] != 1000 || rejected.Total() != rejected.Count[signal.TooLarge] {
				t.Errorf("%d flows kept, rejected %v", kept, rejected)
			}
		})
	}
}

// Whatever a request is made of, its flows come out once each with all that
// belongs to them, in the right partition, and no record is too large.
func TestSplitLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := &agentv1.ExportFlowsRequest{AgentId: "a", Node: rapid.StringN(0, 10, 40).Draw(t, "node")}
		id := uint64(0)
		for g := range rapid.IntRange(0, 5).Draw(t, "groups") {
			group := &agentv1.FlowGroup{NetworkNamespace: uint64(g), Process: strings.Repeat("p", rapid.IntRange(0, 100).Draw(t, "process"))}
			for range rapid.IntRange(0, 12).Draw(t, "flows") {
				id++
				group.Flows = append(group.Flows, newFlow(id, func(f *agentv1.Flow) {
					f.PeerPort = rapid.Uint32Range(0, 9).Draw(t, "port")
				}))
			}
			req.Groups = append(req.Groups, group)
		}
		opts := signal.Options{Partitions: rapid.IntRange(1, 20).Draw(t, "partitions"), Window: window, MaxRecordBytes: rapid.IntRange(200, 3000).Draw(t, "max")}
		b := marshal(t, req)
		records, rejected, err := flows.Signal.NewSplitter().Split(b, opts)
		if err != nil {
			t.Fatal(err)
		}
		last := -1
		var got []string
		for _, r := range records {
			if r.Partition < last || len(r.Value) > opts.MaxRecordBytes {
				t.Fatalf("partition %d after %d, %d bytes", r.Partition, last, len(r.Value))
			}
			last = r.Partition
			part := unmarshal(t, r.Value)
			fs := flat(t, part, func(f *agentv1.Flow) bool { return partition(f, opts.Partitions) == r.Partition })
			if len(fs) != r.Items || flows.Signal.Count(r.Value) != r.Items {
				t.Fatalf("%d flows of %d in partition %d", len(fs), r.Items, r.Partition)
			}
			got = append(got, fs...)
		}
		same(t, flat(t, req, acceptable), got, rejected.Count[signal.TooLarge])
		again, _, err := flows.Signal.NewSplitter().Split(b, opts)
		if diff := cmp.Diff(records, again); diff != "" || err != nil {
			t.Fatalf("the second split differs: %v\n%s", err, diff)
		}
	})
}

// same fails unless got is want without so many.
func same(t fataler, want, got []string, without int64) {
	t.Helper()
	if int64(len(want)) != int64(len(got))+without {
		t.Fatal(fmt.Sprintf("%d flows kept of %d, and %d left out", len(got), len(want), without))
	}
	count := map[string]int{}
	for _, f := range want {
		count[f]++
	}
	for _, f := range got {
		if count[f]--; count[f] < 0 {
			t.Fatal("a flow that was not sent, or changed, or was kept twice")
		}
	}
}

// Texts that are not UTF-8 cost no flow, and rejected flows are named.
func TestBadTextsAreRepaired(t *testing.T) {
	req := newRequest(newFlow(1), newFlow(2, func(f *agentv1.Flow) { f.Connections = 7 }))
	req.GetGroups()[0].Process, req.Node = "ja~va", "~node"
	in := bytes.ReplaceAll(marshal(t, req), []byte("~"), []byte{0xff})
	records, rejected, err := flows.Signal.NewSplitter().Split(in, options())
	if err != nil || len(records) != 1 || records[0].Items != 1 || rejected.RepairedTexts != 2 {
		t.Fatalf("%d records, rejected %v, %v", len(records), rejected, err)
	}
	want := newRequest(newFlow(1))
	want.GetGroups()[0].Process, want.Node = "ja\uFFFDva", "\uFFFDnode"
	if diff := cmp.Diff(want, unmarshal(t, records[0].Value), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if text := flows.Signal.Explain(&rejected, window, 1000); !strings.Contains(text, "flow 1 (counted from 0; connection 2, 10.0.0.1:30002 to 10.0.0.2:80,") {
		t.Errorf("message %q", text)
	}
}

func TestSelect(t *testing.T) {
	req := newRequest(newFlow(1), newFlow(2))
	req.Groups = append(req.Groups, &agentv1.FlowGroup{Flows: []*agentv1.Flow{newFlow(3)}})
	b, err := flows.Signal.Select(marshal(t, req), func(i int) bool { return i == 1 })
	if err != nil {
		t.Fatal(err)
	}
	want := newRequest(newFlow(2))
	if diff := cmp.Diff(want, unmarshal(t, b), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := flows.Signal.Select([]byte("garbage"), func(int) bool { return true }); err == nil {
		t.Error("garbage was taken")
	}
}

// Whatever a request is made of, the work on it grows with its bytes, and so does the memory.
func TestWorkIsLinear(t *testing.T) {
	group := func(fields ...[]byte) []byte { return field(4, slices.Concat(fields...)) }
	one, err := proto.Marshal(newFlow(1))
	if err != nil {
		t.Fatal(err)
	}
	flow := field(9, one)
	for name, build := range map[string]func(size int) []byte{
		"groups without flows":   func(n int) []byte { return slices.Repeat(group(), n/2) },
		"flows without anything": func(n int) []byte { return group(slices.Repeat(field(9, nil), n/2)) },
		"groups of one flow":     func(n int) []byte { return slices.Repeat(group(field(2, []byte("u")), flow), n/len(flow)) },
		"texts again and again": func(n int) []byte {
			return append(slices.Repeat(field(1, []byte("a")), n/6), group(slices.Repeat(field(2, []byte("u")), n/6), flow)...)
		},
		"fields and flows in turn": func(n int) []byte { return group(slices.Repeat(append(field(15, nil), flow...), n/len(flow))) },
	} {
		t.Run(name, func(t *testing.T) {
			opts := options()
			opts.MaxRecordBytes = 1 << 30
			otlptest.Linear(t, 30, [2][]byte{build(otlptest.SmallRequest), build(otlptest.LargeRequest)}, func(req []byte) {
				if _, _, err := flows.Signal.NewSplitter().Split(req, opts); err != nil {
					t.Fatal(err)
				}
				if _, err := flows.Signal.Select(req, func(i int) bool { return i%2 == 0 }); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// field is a length-delimited field.
func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// FuzzSplit holds the walker to the official protobuf runtime: it accepts the
// same byte strings, repairs those whose texts alone the runtime refuses, reads the same values and keeps the same flows.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(marshal(f, newRequest(newFlow(1), newFlow(2, func(f *agentv1.Flow) { f.PeerPort = 0 }))))
	f.Add(otlptest.NewFlows(1, now).RequestBytes(3))
	f.Add(marshal(f, newRequest(newFlow(1, func(f *agentv1.Flow) {
		f.Protocol, f.PeerName, f.QueryCode, f.TranslatedAddress = agentv1.FlowProtocol_FLOW_PROTOCOL_DNS, []byte("a\xffb"), []byte("NXDOMAIN"), []byte{1, 2}
	}))))
	f.Add([]byte{0x0b, 0x0c})                                // an empty group
	f.Add([]byte{0x0a, 0x01, 'a', 0x22, 0, 0x0a, 0x01, 'b'}) // a field given twice, a group between
	f.Add([]byte{0x0a, 0x01, 0xff})
	lenient, err := otlptest.NewLenient(new(agentv1.ExportFlowsRequest))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		strict := proto.Unmarshal(in, new(agentv1.ExportFlowsRequest))
		if err := flows.Signal.Check(in); (err != nil) != (strict != nil) {
			t.Fatalf("Check = %v, the official runtime: %v", err, strict)
		}
		want, wantErr := lenient.Repaired(in)
		records, rejected, err := flows.Signal.NewSplitter().Split(in, options())
		if (err != nil) != (wantErr != nil) || err == nil && (rejected.RepairedTexts == 0) != (strict == nil) {
			t.Fatalf("Split = %v, the official runtime: %v", err, wantErr)
		}
		if err != nil {
			return
		}
		in, _, err = flows.Signal.Repair(nil, in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := lenient.Repaired(in); err != nil || string(got) != string(want) {
			t.Fatalf("repaired %q, want %q, %v", got, want, err)
		}
		req := unmarshal(t, in)
		var head flows.Head
		head.Read(in)
		if string(head.AgentID) != req.GetAgentId() || string(head.Cluster) != req.GetCluster() || string(head.Node) != req.GetNode() {
			t.Fatalf("head %q, the official runtime %v", head, req)
		}
		var judged signal.Rejected
		flat(t, req, func(f *agentv1.Flow) bool {
			judged.Count[read(f).Judge(window)]++
			return false
		})
		kept := judged.Count[signal.Accepted] - rejected.Count[signal.TooLarge]
		judged.Count[signal.Accepted], judged.Count[signal.TooLarge] = 0, rejected.Count[signal.TooLarge]
		if diff := cmp.Diff(judged.Count, rejected.Count); diff != "" {
			t.Fatalf("rejected (-want +got):\n%s", diff)
		}
		var got []string
		for _, r := range records {
			got = append(got, flat(t, unmarshal(t, r.Value), every)...)
		}
		if int64(len(got)) != kept {
			t.Fatalf("%d flows kept, want %d", len(got), kept)
		}
		same(t, flat(t, req, acceptable), got, rejected.Count[signal.TooLarge])
	})
}

// BenchmarkSplit regroups requests of 512 flows.
func BenchmarkSplit(b *testing.B) {
	const count = 512
	req := otlptest.NewFlows(1, now).RequestBytes(count)
	s := flows.Signal.NewSplitter()
	opts := options()
	opts.Partitions = 12
	b.SetBytes(int64(len(req)))
	b.ReportAllocs()
	for b.Loop() {
		if _, rejected, err := s.Split(req, opts); err != nil || rejected.Total() > 0 {
			b.Fatal(rejected, err)
		}
	}
	b.ReportMetric(float64(b.N*count)/b.Elapsed().Seconds(), "flows/s")
}

// Stored data depends on the partition: these values must never change.
func TestHash(t *testing.T) {
	for name, tc := range map[string]struct {
		a, b netip.AddrPort
		want uint64
	}{
		"IPv4": {netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:80"), 0x5df70cbce794a936},
		"IPv6": {netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::2]:80"), 0x2c0ecdf6a53c60d5},
		"self": {netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:80"), 0x538e50d69988bdc6},
	} {
		t.Run(name, func(t *testing.T) {
			if got := flows.Hash(tc.a, tc.b); got != tc.want {
				t.Errorf("hash = %#x, want %#x", got, tc.want)
			}
			if got := flows.Hash(tc.b, tc.a); got != tc.want {
				t.Errorf("hash from the other side = %#x, want %#x", got, tc.want)
			}
		})
	}
	mapped := netip.AddrPortFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 40000)
	if flows.Hash(mapped, netip.MustParseAddrPort("10.0.0.2:80")) != flows.Hash(netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:80")) {
		t.Error("a v4-mapped address hashes differently")
	}
}

func partition(f *agentv1.Flow, partitions int) int {
	end := func(address []byte, port uint32) netip.AddrPort {
		a, _ := netip.AddrFromSlice(address)
		return netip.AddrPortFrom(a, uint16(port))
	}
	return int(flows.Hash(end(f.GetLocalAddress(), f.GetLocalPort()), end(f.GetPeerAddress(), f.GetPeerPort())) % uint64(partitions))
}

package columns_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Two messages that differ in every field differ in every column: no column is constant
// or empty.
func TestEveryColumnFollowsTheMessage(t *testing.T) {
	tables := map[string]func(t *testing.T, variant int) proto.Input{
		columns.TableSpans:    spanVariant,
		columns.TableFlows:    flowVariant,
		columns.TablePods:     podVariant,
		columns.TableServices: serviceVariant,
		columns.TableAgents:   agentVariant,
	}
	for table, variant := range tables {
		t.Run(table, func(t *testing.T) {
			one, two := variant(t, 1), variant(t, 2)
			for i, c := range one {
				if c.Data.Rows() != 1 || two[i].Data.Rows() != 1 {
					t.Errorf("column %s has %d and %d rows, want 1", c.Name, c.Data.Rows(), two[i].Data.Rows())
				}
				if bytes.Equal(encoded(t, c.Data), encoded(t, two[i].Data)) {
					t.Errorf("column %s is the same for two messages that differ in every field", c.Name)
				}
			}
		})
	}
}

func encoded(t *testing.T, c proto.ColInput) []byte {
	t.Helper()
	if c, ok := c.(proto.Preparable); ok {
		if err := c.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	var b proto.Buffer
	c.EncodeColumn(&b)
	return b.Buf
}

func spanVariant(t *testing.T, v int) proto.Input {
	n, text := uint32(v), fmt.Sprint("text ", v)
	attributes := func(key string) []*commonpb.KeyValue { return []*commonpb.KeyValue{kv(key, str(text))} }
	span := newSpan(
		kv("rpc.system", str([]string{"grpc", "dubbo"}[v-1])), kv("rpc.method", str(fmt.Sprint("Method", v))),
		kv("rpc.service", str(fmt.Sprint("Service", v))), kv("rpc.grpc.status_code", integer(int64(v))), kv("rpc.response.status_code", str(fmt.Sprint(v))),
		kv("network.local.address", str(fmt.Sprint("10.0.1.", v))), kv("network.local.port", integer(int64(v))),
		kv("network.peer.address", str(fmt.Sprint("10.0.2.", v))), kv("network.peer.port", integer(int64(v))))
	span.TraceId[0], span.SpanId[0], span.ParentSpanId = byte(v), byte(v), []byte{1, 2, 3, 4, 5, 6, 7, byte(v)}
	span.TraceState, span.Flags, span.Name, span.Kind = text, n, text, tracepb.Span_SpanKind(v+1)
	span.StartTimeUnixNano, span.EndTimeUnixNano = uint64(v), uint64(3*v)
	span.Status = &tracepb.Status{Code: tracepb.Status_StatusCode(v), Message: text}
	span.DroppedAttributesCount, span.DroppedEventsCount, span.DroppedLinksCount = n, n, n
	span.Events = []*tracepb.Span_Event{{TimeUnixNano: uint64(v), Name: text, Attributes: attributes("e"), DroppedAttributesCount: n}}
	span.Links = []*tracepb.Span_Link{{TraceId: span.TraceId, SpanId: span.SpanId, TraceState: text, Attributes: attributes("l"), DroppedAttributesCount: n, Flags: n}}
	req := request(span)
	rs := req.GetResourceSpans()[0]
	for _, key := range []string{"service.name", "k8s.namespace.name", "k8s.pod.name", "k8s.deployment.name"} {
		rs.Resource.Attributes = append(rs.Resource.Attributes, kv(key, str(text)))
	}
	rs.ScopeSpans[0].Scope = &commonpb.InstrumentationScope{Name: text}
	s := columns.NewSpans()
	if refused, err := s.Append(marshal(t, req), columns.Source{Agent: text, Window: everything}); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	return s.Input()
}

func flowVariant(t *testing.T, v int) proto.Input {
	n, m, text := uint32(v), uint64(v), fmt.Sprint("text ", v)
	req := &agentv1.ExportFlowsRequest{AgentId: text, Cluster: text, Node: text, Groups: []*agentv1.FlowGroup{{
		NetworkNamespace: m, PodUid: text, Pod: text, Namespace: text, Workload: text, ContainerId: text, Container: text, Process: text,
		Flows: []*agentv1.Flow{{
			StartTimeUnixNano: m, EndTimeUnixNano: 3 * m, LocalAddress: []byte{10, 0, 0, byte(v)}, LocalPort: n,
			PeerAddress: []byte{10, 0, 1, byte(v)}, PeerPort: n, Role: agentv1.FlowRole(v), State: agentv1.FlowState(v), End: agentv1.FlowEnd(v), Connection: m,
			Connections: n - 1, ConnectFailures: n - 1, Resets: n - 1, Timeouts: n - 1, BytesSent: m, BytesReceived: m, Retransmits: m,
			RetransmittedBytes: m, SegmentsSent: m, RttUs: n, RttMinUs: n, ReceiveWindowLimitedUs: m, SendBufferLimitedUs: m, BusyUs: m,
			Protocol: agentv1.FlowProtocol(v - 1), PeerName: []byte(text), TranslatedAddress: []byte{10, 0, 2, byte(v)}, TranslatedPort: n,
			TranslatedPeerAddress: []byte{10, 0, 3, byte(v)}, TranslatedPeerPort: n, RttUsualUs: n, RttMaxUs: n, QueueUs: n, Refused: n - 1, GaveUp: n - 1,
			AcceptQueueFull: n, UnreadBytes: m, UnsentBytes: m, RetransmitTimeoutUs: m, Queries: n, QueryFailures: n, QueriesUnanswered: n,
			QueryTimeUs: m, QueryTimeMaxUs: n, QueryCode: []byte(text),
		}},
	}}}
	holder := index.Holder{Kind: []index.Kind{index.Pod, index.Service}[v-1], Node: text, Namespace: text, Name: text, UID: text, Workload: text}
	f := columns.NewFlows(func(string, netip.Addr, uint64) index.Holder { return holder })
	refused, err := f.Append(marshal(t, req), columns.Source{Window: everything})
	if err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	return f.Input()
}

func podVariant(_ *testing.T, v int) proto.Input {
	second, text := uint64(v)*1e9, fmt.Sprint("text ", v)
	b := columns.NewPods()
	b.Append(&agentv1.Pod{
		Uid: text, Namespace: text, Name: text, Workload: text, WorkloadKind: text, HostNetwork: v == 1, Cluster: text, Node: text, SeenTimeUnixNano: second,
		Addresses: []*agentv1.PodAddress{{Address: []byte{10, 0, 0, byte(v)}, ValidFromUnixNano: second, ValidToUnixNano: second}},
	}, time.Unix(int64(v), 0))
	return b.Input()
}

func serviceVariant(_ *testing.T, v int) proto.Input {
	second, text, address := uint64(v)*1e9, fmt.Sprint("text ", v), [][]byte{{10, 0, 0, byte(v)}}
	b := columns.NewServices()
	b.Append(&agentv1.Service{
		Namespace: text, Name: text, Addresses: address, Ports: []*agentv1.ServicePort{{Port: uint32(v)}}, Endpoints: address, EndpointCount: uint32(v),
		StartTimeUnixNano: second, EndTimeUnixNano: second, Cluster: text, SeenTimeUnixNano: second,
	}, time.Unix(int64(v), 0))
	return b.Input()
}

func agentVariant(_ *testing.T, v int) proto.Input {
	second, text := uint64(v)*1e9, fmt.Sprint("text ", v)
	status := &agentv1.AgentStatus{
		Registration: &agentv1.Registration{
			Name: text, Host: text, Addresses: []string{fmt.Sprint("10.0.0.", v)}, Version: text, Cluster: text, StartTimeUnixNano: second,
		},
		Heartbeat:        &agentv1.Heartbeat{Revision: uint64(v), Exceptions: []string{text}},
		SeenTimeUnixNano: second, GroupId: text, Replica: text,
	}
	if v == 2 { // a deleted agent has only its id
		status = nil
	}
	b := columns.NewAgents()
	b.Append(text, status, time.Unix(int64(v), 0))
	return b.Input()
}

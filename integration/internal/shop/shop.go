// Package shop simulates one hour of a small web shop in Kubernetes, for the
// tests of queries on ClickHouse: spans as SDKs send them, and the flow data of
// their connections. Every run is identical to the nanosecond.
//
// In that hour one of two pods of paymentservice runs a new version that
// declines more cards; searches read the whole table of products; and in the
// last quarter every tenth request from checkoutservice to paymentservice loses
// a packet.
package shop

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// Start and End bound the hour: [Start, End).
var (
	Start = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	End   = Start.Add(time.Hour)

	// troubleFrom is when packet loss begins.
	troubleFrom = End.Add(-15 * time.Minute)
)

const (
	every          = 4 * time.Second        // interval between visitors' requests
	retransmission = 201 * time.Millisecond // Linux's first retransmission timeout, plus 1 ms
)

// pod is one instance of a service.
type pod struct {
	service, name, ip, node, version string
	port                             int
}

// Pods in the order of their services. The last two are not pods: they are not
// traced.
var pods = []pod{
	{"frontend", "frontend-7c9d5b8f4-2xkzp", "10.244.1.10", "node-1", "2.3.0", 8080},
	{"frontend", "frontend-7c9d5b8f4-w8q6n", "10.244.2.10", "node-2", "2.3.0", 8080},
	{"productcatalogservice", "productcatalogservice-6f5c-9hj2m", "10.244.2.11", "node-2", "1.9.1", 3550},
	{"cartservice", "cartservice-5d8b7-kq4tz", "10.244.1.12", "node-1", "1.2.0", 7070},
	{"checkoutservice", "checkoutservice-84c6d-r7v5x", "10.244.1.13", "node-1", "1.7.4", 5050},
	{"paymentservice", "paymentservice-58f9-d2lcb", "10.244.2.14", "node-2", "1.4.2", 50051},
	{"paymentservice", "paymentservice-6bb4-m5nwh", "10.244.3.14", "node-3", "1.5.0", 50051},
	{"emailservice", "emailservice-77f6c-zt8gs", "10.244.3.15", "node-3", "1.0.8", 8080},
	{"", "postgres", "10.244.3.20", "node-3", "", 5432},
	{"", "redis", "10.244.3.21", "node-3", "", 6379},
	{"", "kafka", "10.244.3.22", "node-3", "", 9092},
}

// operation is what a service does for a request.
type operation struct {
	service, name, protocol string
	work                    time.Duration // on average, without calls
	calls                   []*operation
}

var (
	getProduct     = &operation{"productcatalogservice", "GetProduct", "grpc", 2 * time.Millisecond, []*operation{{"postgres", "SELECT product", "postgresql", 1500 * time.Microsecond, nil}}}
	searchProducts = &operation{"productcatalogservice", "SearchProducts", "grpc", 4 * time.Millisecond, []*operation{{"postgres", "SELECT product LIKE", "postgresql", 90 * time.Millisecond, nil}}}
	getCart        = &operation{"cartservice", "GetCart", "grpc", time.Millisecond, []*operation{{"redis", "HGETALL", "redis", 400 * time.Microsecond, nil}}}
	emptyCart      = &operation{"cartservice", "EmptyCart", "grpc", time.Millisecond, []*operation{{"redis", "DEL", "redis", 300 * time.Microsecond, nil}}}
	charge         = &operation{"paymentservice", "Charge", "grpc", 18 * time.Millisecond, nil}
	placeOrder     = &operation{
		"checkoutservice", "PlaceOrder", "grpc", 6 * time.Millisecond,
		[]*operation{getCart, getProduct, getProduct, getProduct, charge, emptyCart, {"kafka", "publish orders", "kafka", 2 * time.Millisecond, nil}},
	}
	pages = []*operation{
		{"frontend", "GET /product/{id}", "http", 5 * time.Millisecond, []*operation{getProduct, getCart}},
		{"frontend", "GET /cart", "http", 4 * time.Millisecond, []*operation{getCart, getProduct, getProduct}},
		{"frontend", "GET /search", "http", 6 * time.Millisecond, []*operation{searchProducts}},
		{"frontend", "POST /checkout", "http", 8 * time.Millisecond, []*operation{placeOrder}},
	}
	statements = map[string]string{
		"SELECT product":      "SELECT id, name, price FROM product WHERE id = $1",
		"SELECT product LIKE": "SELECT id, name, price FROM product WHERE description LIKE $1 ORDER BY price LIMIT 10",
	}
)

// edge is a connection that stays open for the whole hour, one between each two
// pods that call each other.
type edge struct {
	client, server pod
	clientPort     int
}

// traffic is what an edge carried in one minute.
type traffic struct{ requests, lost int }

// Shop is the hour. Use New.
type Shop struct {
	random *rand.Rand
	spans  map[string][]*tracepb.Span // by pod
	order  []pod                      // pods that have spans
	flows  map[edge]map[time.Time]*traffic
	edges  []edge
}

// New simulates the hour.
func New() *Shop {
	s := &Shop{random: rand.New(rand.NewPCG(1, 2)), spans: map[string][]*tracepb.Span{}, flows: map[edge]map[time.Time]*traffic{}} //nolint:gosec // the same in every run
	for at, i := Start, 0; at.Before(End.Add(-every)); at, i = at.Add(every), i+1 {
		page := pages[i%len(pages)]
		r := &request{trace: s.id(16), user: strconv.Itoa(1000 + s.random.IntN(40)), orphaned: page == pages[3] && i%90 == 3}
		visitor := pod{ip: "203.0.113." + strconv.Itoa(1+s.random.IntN(200))}
		s.serve(r, at.Add(s.about(time.Second)), page, visitor, s.choose(page.service), nil)
	}
	return s
}

// request holds what the spans of a request share.
type request struct {
	trace    []byte
	user     string
	failed   bool
	orphaned bool // one span on the path is never reported
}

// serve creates the server span of p and everything below it, and returns its
// end.
func (s *Shop) serve(r *request, at time.Time, op *operation, from, p pod, parent []byte) time.Time {
	id := s.id(8)
	began := at
	at = at.Add(s.about(op.work) / 2)
	for _, c := range op.calls {
		if r.failed {
			break
		}
		at = s.call(r, at, c, p, id)
	}
	at = at.Add(s.about(op.work) / 2)
	span := &tracepb.Span{
		TraceId: r.trace, SpanId: id, ParentSpanId: parent, Name: op.name, Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(began.UnixNano()), EndTimeUnixNano: uint64(at.UnixNano()),
	}
	declined := op == charge && s.random.Float64() < map[string]float64{"1.4.2": 0.01, "1.5.0": 0.14}[p.version]
	if declined {
		r.failed = true
		span.Events = []*tracepb.Span_Event{{
			TimeUnixNano: span.EndTimeUnixNano - 1000, Name: "exception",
			Attributes: []*commonpb.KeyValue{otlptest.Text("exception.type", "payment.CardDeclined"), otlptest.Text("exception.message", "issuer refused: do not honor")},
		}}
	}
	if r.failed {
		span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "card declined"}
	}
	span.Attributes = append(protocol(op, r.failed), otlptest.Text("client.address", from.ip), otlptest.Text("network.peer.address", from.ip), otlptest.Number("server.port", p.port))
	if op.service == "frontend" {
		span.Attributes = append(span.Attributes, otlptest.Text("app.user.id", r.user))
	}
	s.report(p, span)
	return at
}

// call creates the client span and everything below it.
func (s *Shop) call(r *request, at time.Time, op *operation, from pod, parent []byte) time.Time {
	id := s.id(8)
	began := at
	way := s.about(400 * time.Microsecond)
	lost := op == charge && !at.Before(troubleFrom) && s.random.IntN(10) == 0
	at = at.Add(way / 2)
	to := s.choose(op.service)
	switch op.protocol {
	case "http", "grpc":
		if lost {
			at = at.Add(retransmission)
		}
		at = s.serve(r, at, op, from, to, id)
	default:
		at = at.Add(s.about(op.work))
	}
	at = at.Add(way / 2)
	kind := tracepb.Span_SPAN_KIND_CLIENT
	if op.protocol == "kafka" {
		kind = tracepb.Span_SPAN_KIND_PRODUCER
		s.consume(r, at.Add(s.about(40*time.Millisecond)), to, id)
	}
	span := &tracepb.Span{
		TraceId: r.trace, SpanId: id, ParentSpanId: parent, Name: op.name, Kind: kind,
		StartTimeUnixNano: uint64(began.UnixNano()), EndTimeUnixNano: uint64(at.UnixNano()),
		Attributes: append(protocol(op, r.failed), otlptest.Text("server.address", to.host()), otlptest.Number("server.port", to.port),
			otlptest.Text("network.peer.address", to.ip), otlptest.Number("network.peer.port", to.port)),
	}
	if r.failed {
		span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "rpc error: card declined"}
	}
	if !r.orphaned || op != charge {
		s.report(from, span)
	}
	s.carry(from, to, began, lost)
	return at
}

// consume creates the span of the consumer of a queued order.
func (s *Shop) consume(r *request, at time.Time, broker pod, producer []byte) {
	p := s.choose("emailservice")
	s.report(p, &tracepb.Span{
		TraceId: r.trace, SpanId: s.id(8), ParentSpanId: producer, Name: "process orders", Kind: tracepb.Span_SPAN_KIND_CONSUMER,
		StartTimeUnixNano: uint64(at.UnixNano()), EndTimeUnixNano: uint64(at.Add(s.about(12 * time.Millisecond)).UnixNano()),
		Attributes: []*commonpb.KeyValue{
			otlptest.Text("messaging.system", "kafka"), otlptest.Text("messaging.operation.name", "process"), otlptest.Text("messaging.destination.name", "orders"),
			otlptest.Text("server.address", broker.host()), otlptest.Number("server.port", broker.port),
			otlptest.Text("network.peer.address", broker.ip), otlptest.Number("network.peer.port", broker.port),
		},
	})
	s.carry(p, broker, at, false)
}

// Requests returns the spans, one request per pod.
func (s *Shop) Requests() []*coltracepb.ExportTraceServiceRequest {
	var all []*coltracepb.ExportTraceServiceRequest
	for _, p := range s.order {
		all = append(all, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
			Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
				otlptest.Text("service.name", p.service), otlptest.Text("service.version", p.version), otlptest.Text("service.namespace", "shop"),
				otlptest.Text("service.instance.id", p.name), otlptest.Text("k8s.cluster.name", "prod"), otlptest.Text("k8s.namespace.name", "shop"), otlptest.Text("k8s.pod.name", p.name),
				otlptest.Text("k8s.pod.uid", "uid-of-"+p.name), otlptest.Text("k8s.pod.ip", p.ip), otlptest.Text("k8s.node.name", p.node), otlptest.Text("k8s.deployment.name", p.service),
			}},
			ScopeSpans: []*tracepb.ScopeSpans{{
				Scope: &commonpb.InstrumentationScope{Name: "shop", Version: "1.0.0"},
				Spans: s.spans[p.name],
			}},
		}}})
	}
	return all
}

// Flow is a row of flows_local, with its column names.
type Flow struct {
	Time                 string `json:"time"`
	StartTime            string `json:"start_time"`
	Role                 string `json:"role"`
	IP                   string `json:"ip"`
	Port                 int    `json:"port"`
	PeerIP               string `json:"peer_ip"`
	PeerPort             int    `json:"peer_port"`
	NetworkNamespace     int    `json:"network_namespace"`
	Connection           int    `json:"connection"`
	State                string `json:"state"`
	Connections          int    `json:"connections"`
	BytesSent            int    `json:"bytes_sent"`
	BytesReceived        int    `json:"bytes_received"`
	SegmentsSent         int    `json:"segments_sent"`
	Retransmits          int    `json:"retransmits"`
	RetransmittedBytes   int    `json:"retransmitted_bytes"`
	RTTMicros            int    `json:"rtt_us"`
	RTTMinMicros         int    `json:"rtt_min_us"`
	ReceiveWindowLimited int    `json:"receive_window_limited_us"`
	BusyMicros           int    `json:"busy_us"`
	Agent                string `json:"agent_id"`
	Cluster              string `json:"cluster"`
	Node                 string `json:"node"`
	Namespace            string `json:"namespace"`
	Pod                  string `json:"pod"`
	PodUID               string `json:"pod_uid"`
	Workload             string `json:"workload"`
	PeerNode             string `json:"peer_node"`
	PeerNamespace        string `json:"peer_namespace"`
	PeerPod              string `json:"peer_pod"`
}

// Flows returns the flow data of both ends of every connection, minute by
// minute.
func (s *Shop) Flows() []Flow {
	var all []Flow
	for i, e := range s.edges {
		first := true
		for at := Start; at.Before(End); at = at.Add(time.Minute) {
			t := s.flows[e][at]
			if t == nil {
				continue
			}
			row := Flow{
				Time: at.Add(59 * time.Second).Format(time.DateTime), StartTime: at.Add(-time.Second).Format(time.DateTime), Role: "client",
				IP: e.client.ip, Port: e.clientPort, PeerIP: e.server.ip, PeerPort: e.server.port, NetworkNamespace: 1, Connection: i + 1, State: "living",
				BytesSent: 600 * t.requests, BytesReceived: 1800 * t.requests, SegmentsSent: 4 * t.requests, Retransmits: t.lost, RetransmittedBytes: 600 * t.lost,
				RTTMicros: 240 + i, RTTMinMicros: 180 + i, BusyMicros: 900 * t.requests,
			}
			if first {
				row.Connections, first = 1, false
			}
			all = append(all, row.of(e.client, e.server))
			row.Role, row.IP, row.Port, row.PeerIP, row.PeerPort = "server", e.server.ip, e.server.port, e.client.ip, e.clientPort
			row.BytesSent, row.BytesReceived, row.Retransmits, row.RetransmittedBytes = row.BytesReceived, row.BytesSent, 0, 0
			all = append(all, row.of(e.server, e.client))
		}
	}
	return all
}

func (f Flow) of(p, peer pod) Flow {
	f.Agent, f.Cluster, f.Node, f.Namespace, f.Pod, f.PodUID, f.Workload = "agent-of-"+p.node, "prod", p.node, "shop", p.name, "uid-of-"+p.name, p.host()
	f.PeerNode, f.PeerNamespace, f.PeerPod = peer.node, "shop", peer.name
	return f
}

func (p pod) host() string {
	if p.service != "" {
		return p.service
	}
	return p.name
}

// choose returns a random pod of a service.
func (s *Shop) choose(service string) pod {
	var found []pod
	for _, p := range pods {
		if p.host() == service {
			found = append(found, p)
		}
	}
	return found[s.random.IntN(len(found))]
}

func (s *Shop) report(p pod, span *tracepb.Span) {
	if s.spans[p.name] == nil {
		s.order = append(s.order, p)
	}
	s.spans[p.name] = append(s.spans[p.name], span)
}

func (s *Shop) carry(from, to pod, at time.Time, lost bool) {
	var e edge
	for _, known := range s.edges {
		if known.client == from && known.server == to {
			e = known
		}
	}
	if e.clientPort == 0 {
		e = edge{from, to, 40000 + len(s.edges)}
		s.edges = append(s.edges, e)
		s.flows[e] = map[time.Time]*traffic{}
	}
	minute := at.Truncate(time.Minute)
	if s.flows[e][minute] == nil {
		s.flows[e][minute] = &traffic{}
	}
	s.flows[e][minute].requests++
	if lost {
		s.flows[e][minute].lost++
	}
}

// about returns mean plus or minus up to half of it, and occasionally three
// times as much.
func (s *Shop) about(mean time.Duration) time.Duration {
	d := mean/2 + time.Duration(s.random.Int64N(int64(mean)))
	if s.random.IntN(50) == 0 {
		d *= 3
	}
	return d
}

func (s *Shop) id(size int) []byte {
	var b []byte
	for len(b) < size {
		b = binary.BigEndian.AppendUint64(b, s.random.Uint64())
	}
	return b
}

// protocol returns the attributes of a call by the semantic conventions.
func protocol(op *operation, failed bool) []*commonpb.KeyValue {
	switch op.protocol {
	case "http":
		status := 200
		if failed {
			status = 402
			if op.name == "POST /checkout" {
				status = 500
			}
		}
		method, route := split(op.name)
		return []*commonpb.KeyValue{otlptest.Text("http.request.method", method), otlptest.Text("http.route", route), otlptest.Text("url.path", route), otlptest.Number("http.response.status_code", status)}
	case "grpc":
		status := 0
		if failed {
			status = 9
		}
		return []*commonpb.KeyValue{otlptest.Text("rpc.system", "grpc"), otlptest.Text("rpc.service", "shop."+op.service), otlptest.Text("rpc.method", op.name), otlptest.Number("rpc.grpc.status_code", status)}
	case "kafka":
		return []*commonpb.KeyValue{otlptest.Text("messaging.system", "kafka"), otlptest.Text("messaging.operation.name", "publish"), otlptest.Text("messaging.destination.name", "orders")}
	default:
		verb, _ := split(op.name)
		attributes := []*commonpb.KeyValue{otlptest.Text("db.system.name", op.protocol), otlptest.Text("db.operation.name", verb)}
		if statement := statements[op.name]; statement != "" {
			attributes = append(attributes, otlptest.Text("db.query.text", statement))
		}
		return attributes
	}
}

func split(name string) (first, rest string) {
	for i := range name {
		if name[i] == ' ' {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}

package semconv_test

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
)

// pairs are attributes as a caller gives them: key, value, key, value.
type pairs []string

func (p pairs) bytes() [][]byte {
	out := make([][]byte, len(p))
	for i, text := range p {
		out[i] = []byte(text)
	}
	return out
}

var benchSpans = []struct {
	name  string
	kind  semconv.Kind
	attrs pairs
}{
	{"http-server-old", semconv.Server, pairs{
		"thread.id", "41", "thread.name", "http-nio-8080-exec-3", "http.method", "GET", "http.target", "/orders/17?full=1", "http.scheme", "http",
		"http.route", "/orders/{id}", "http.status_code", "200", "http.flavor", "1.1", "net.host.name", "orders", "net.host.port", "8080",
		"net.sock.peer.addr", "10.244.1.7", "net.sock.peer.port", "51514", "net.sock.host.addr", "10.244.2.9", "net.sock.host.port", "8080",
		"user_agent.original", "curl/8.1", "http.response_content_length", "512",
	}},
	{"http-server-new", semconv.Server, pairs{
		"server.address", "orders", "server.port", "8080", "http.request.method", "GET", "url.scheme", "http", "url.path", "/orders/17",
		"network.peer.address", "10.244.1.7", "network.peer.port", "51514", "user_agent.original", "Go-http-client/1.1",
		"network.protocol.version", "1.1", "http.route", "/orders/{id}", "http.response.status_code", "200", "http.response.body.size", "512",
	}},
	{"grpc-client", semconv.Client, pairs{
		"rpc.system", "grpc", "rpc.service", "shop.Cart", "rpc.method", "GetItem", "server.address", "10.244.3.3", "server.port", "9000",
		"rpc.grpc.status_code", "0", "network.peer.address", "10.244.3.3", "network.peer.port", "9000",
	}},
	{"redis-client", semconv.Client, pairs{
		"db.system", "redis", "db.statement", "get cart:17", "server.address", "10.244.4.4", "server.port", "6379", "code.function", "main.get",
		"code.filepath", "/src/cart/store.go", "code.lineno", "77",
	}},
}

func BenchmarkSpan(b *testing.B) {
	for _, bench := range benchSpans {
		b.Run(bench.name, func(b *testing.B) {
			attrs := bench.attrs.bytes()
			var span semconv.Span
			b.ReportAllocs()
			for b.Loop() {
				span.Reset()
				for i := 0; i < len(attrs); i += 2 {
					span.Add(attrs[i], attrs[i+1])
				}
				span.Resolve(bench.kind, nil, [16]byte{})
			}
			perAttr := float64(b.Elapsed().Nanoseconds()) / float64(b.N*len(attrs)/2)
			b.ReportMetric(perAttr, "ns/attr")
		})
	}
}

// BenchmarkAdd separates the cost of an attribute from that of a span.
func BenchmarkAdd(b *testing.B) {
	keys := map[string]pairs{
		"known": {
			"http.request.method", "http.response.status_code", "http.route", "url.path", "url.scheme", "server.address", "server.port",
			"network.peer.address", "network.peer.port", "rpc.system", "rpc.service", "rpc.method", "db.system", "db.statement",
		},
		"unknown": {
			"thread.id", "thread.name", "user_agent.original", "network.protocol.version", "http.response.body.size", "code.function", "code.filepath",
			"code.lineno", "url.query", "app.order.id", "session.id", "telemetry.sdk.name", "enduser.id", "messaging.message.id",
		},
	}
	for name, set := range keys {
		b.Run(name, func(b *testing.B) {
			names, value := set.bytes(), []byte("x")
			var span semconv.Span
			b.ReportAllocs()
			for b.Loop() {
				for _, key := range names {
					span.Add(key, value)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(names)), "ns/attr")
		})
	}
}

func BenchmarkResource(b *testing.B) {
	attrs := pairs{
		"service.name", "orders", "service.version", "1.4.2", "service.instance.id", "627cc493", "telemetry.sdk.language", "java", "host.name", "orders-7d4b9",
		"k8s.namespace.name", "shop", "k8s.pod.name", "orders-7d4b9c6f5d-x2x7k", "k8s.pod.uid", "275ecb36-5aa8-4c2a-9c47-d8bb681b9aff",
		"k8s.node.name", "node-3", "k8s.deployment.name", "orders", "host.ip", `["127.0.0.1","fe80::1","10.244.2.9"]`, "os.type", "linux",
	}.bytes()
	var res semconv.Resource
	b.ReportAllocs()
	for b.Loop() {
		res.Reset()
		for i := 0; i < len(attrs); i += 2 {
			res.Add(attrs[i], attrs[i+1])
		}
		res.Resolve()
	}
}

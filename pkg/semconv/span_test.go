package semconv_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
)

// spanView is a resolved Span in comparable form; addresses are text, empty
// when unknown.
type spanView struct {
	Protocol, Method, Endpoint, Code string
	IP, PeerIP                       string
	Port, PeerPort                   uint16
}

func viewOf(s *semconv.Span) spanView {
	return spanView{
		Protocol: string(s.Protocol), Method: string(s.Method), Endpoint: string(s.Endpoint), Code: string(s.ResponseCode),
		IP: addressText(s.IP), PeerIP: addressText(s.PeerIP), Port: s.Port, PeerPort: s.PeerPort,
	}
}

func addressText(ip [16]byte) string {
	if ip == [16]byte{} {
		return ""
	}
	return netip.AddrFrom16(ip).Unmap().String()
}

func add(attrs pairs, to func(key, value []byte)) {
	data := attrs.bytes()
	for i := 0; i < len(data); i += 2 {
		to(data[i], data[i+1])
	}
}

type spanStory struct {
	kind     semconv.Kind
	name     string
	resource pairs
	attrs    pairs
	want     spanView
}

func (story spanStory) resolve(s *semconv.Span) spanView {
	var res semconv.Resource
	add(story.resource, res.Add)
	res.Resolve()
	s.Reset()
	add(story.attrs, s.Add)
	s.Resolve(story.kind, []byte(story.name), res.IP)
	return viewOf(s)
}

var spanStories = map[string]spanStory{
	"Envoy, its own call": {
		kind: semconv.Client, resource: pairs{"k8s.pod.ip", "10.1.1.1"},
		attrs: pairs{
			"http.method", "GET", "http.url", "http://cart/items", "peer.address", "10.1.1.1", "upstream_address", "10.2.2.2:8080",
			"upstream_cluster", "outbound|80||cart", "component", "proxy",
		},
		want: spanView{Protocol: "http", Method: "GET", Endpoint: "/items", IP: "10.1.1.1", PeerIP: "10.2.2.2", PeerPort: 8080},
	},
	"Envoy, its own call on behalf of another host": {
		kind: semconv.Client, resource: pairs{"k8s.pod.ip", "10.1.1.1"},
		attrs: pairs{"http.method", "GET", "http.url", "http://10.1.1.1/items", "peer.address", "10.9.9.9", "upstream_cluster.name", "cart"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/items", IP: "10.1.1.1"},
	},
	"Envoy, its call to the program beside it": {
		kind: semconv.Client, resource: pairs{"k8s.pod.ip", "10.1.1.1"},
		attrs: pairs{"peer.address", "10.9.9.9", "upstream_address", "10.1.1.1:8080"},
		want:  spanView{IP: "10.1.1.1"},
	},
	"Envoy, a request to it": {
		kind: semconv.Server, resource: pairs{"k8s.pod.ip", "10.1.1.1"},
		attrs: pairs{"peer.address", "10.3.3.3", "upstream_address", "127.0.0.1:8080", "upstream_cluster", "inbound|8080||"},
		want:  spanView{IP: "10.1.1.1", PeerIP: "10.3.3.3"},
	},
	"peer.address is one's own": {
		kind: semconv.Client, resource: pairs{"k8s.pod.ip", "10.1.1.1"},
		attrs: pairs{"peer.address", "/10.1.1.1:41234", "peer.ipv4", "10.1.1.1", "peer.port", "41234"},
		want:  spanView{IP: "10.1.1.1"},
	},
	"peer.address is one's own, on a server that says its address itself": {
		kind:  semconv.Server,
		attrs: pairs{"peer.address", "10.1.1.1", "network.local.address", "10.1.1.1", "network.local.port", "80"},
		want:  spanView{IP: "10.1.1.1", Port: 80},
	},
	"peer.address is one's own, and a socket is known": {
		kind: semconv.Client, resource: pairs{"k8s.pod.ip", "10.1.1.1"},
		attrs: pairs{"peer.address", "10.1.1.1:41234", "net.sock.peer.addr", "10.2.2.2", "net.sock.peer.port", "9000"},
		want:  spanView{IP: "10.1.1.1", PeerIP: "10.2.2.2", PeerPort: 9000},
	},
	"java agent 1.15, HTTP server": {
		kind: semconv.Server, name: "/orders/{id}",
		attrs: pairs{
			"thread.id", "41", "http.method", "GET", "http.scheme", "http", "http.target", "/orders/17?full=1", "http.route", "/orders/{id}",
			"http.status_code", "200", "http.flavor", "1.1", "net.host.name", "orders.shop.svc", "net.host.port", "8080",
			"net.sock.peer.addr", "10.244.1.7", "net.sock.peer.port", "51514", "net.sock.host.addr", "10.244.2.9", "net.transport", "ip_tcp",
		},
		want: spanView{Protocol: "http", Method: "GET", Endpoint: "/orders/{id}", Code: "200", IP: "10.244.2.9", Port: 8080, PeerIP: "10.244.1.7", PeerPort: 51514},
	},
	"java agent 1.15, HTTP client to a name: the socket's port is left out as equal": {
		kind: semconv.Client, name: "GET",
		attrs: pairs{
			"http.method", "GET", "http.url", "https://user:secret@api.example.com:8443/v1/pay;jsessionid=A1?token=t#top", "http.status_code", "503",
			"net.peer.name", "api.example.com", "net.peer.port", "8443", "net.sock.peer.addr", "203.0.113.5",
		},
		want: spanView{Protocol: "http", Method: "GET", Endpoint: "/v1/pay", Code: "503", PeerIP: "203.0.113.5", PeerPort: 8443},
	},
	"node 0.2x, HTTP server with the names of 1.4": {
		kind: semconv.Server, name: "GET /cart/42",
		attrs: pairs{
			"http.url", "http://cart:7070/cart/42?x=1", "http.host", "cart:7070", "net.host.name", "cart", "http.method", "GET", "http.target", "/cart/42?x=1",
			"http.client_ip", "198.51.100.9", "net.host.ip", "::ffff:10.244.3.1", "net.host.port", "7070", "net.peer.ip", "::ffff:10.244.1.1", "net.peer.port", "40312",
			"http.status_code", "404", "http.status_text", "NOT FOUND", "http.flavor", "1.1",
		},
		want: spanView{Protocol: "http", Method: "GET", Code: "404", IP: "10.244.3.1", Port: 7070, PeerIP: "10.244.1.1", PeerPort: 40312},
	},
	"otelhttp, client: the default port is left out": {
		kind: semconv.Client, name: "HTTP GET",
		attrs: pairs{
			"http.request.method", "GET", "url.full", "https://10.96.0.12/stock/7?unit=kg", "server.address", "10.96.0.12",
			"network.protocol.version", "2", "http.response.status_code", "200",
		},
		want: spanView{Protocol: "http", Method: "GET", Endpoint: "/stock/*", Code: "200", PeerIP: "10.96.0.12", PeerPort: 443},
	},
	"otelhttp, server behind a proxy: the forwarded client is not the peer": {
		kind: semconv.Server, name: "checkout",
		attrs: pairs{
			"server.address", "checkout", "server.port", "8080", "http.request.method", "POST", "url.scheme", "http", "url.path", "/checkout",
			"network.peer.address", "10.244.0.3", "client.address", "198.51.100.9", "client.port", "61000", "http.response.status_code", "201",
		},
		want: spanView{Protocol: "http", Method: "POST", Endpoint: "/checkout", Code: "201", Port: 8080, PeerIP: "10.244.0.3"},
	},
	"HTTP server without a proxy: the client's port is the peer's": {
		kind: semconv.Server,
		attrs: pairs{
			"http.request.method", "GET", "network.peer.address", "10.244.0.3", "client.address", "10.244.0.3", "client.port", "61000",
		},
		want: spanView{Protocol: "http", Method: "GET", PeerIP: "10.244.0.3", PeerPort: 61000},
	},
	"http/dup: the current names win": {
		kind: semconv.Server,
		attrs: pairs{
			"http.method", "get", "http.status_code", "299", "http.request.method", "GET", "http.response.status_code", "200",
			"http.target", "/old", "url.path", "/new",
		},
		want: spanView{Protocol: "http", Method: "GET", Endpoint: "/new", Code: "200"},
	},
	"HTTP method that is not registered, kept when it is a word": {
		kind:  semconv.Server,
		attrs: pairs{"http.request.method", "_OTHER", "http.request.method_original", "PURGE", "url.path", "/"},
		want:  spanView{Protocol: "http", Method: "PURGE", Endpoint: "/"},
	},
	"HTTP method that is noise": {
		kind:  semconv.Server,
		attrs: pairs{"http.request.method", "_OTHER", "http.request.method_original", "\x16\x03\x01", "url.path", "/"},
		want:  spanView{Protocol: "http", Method: "_OTHER", Endpoint: "/"},
	},
	"old name holds the route that no attribute has": {
		kind: semconv.Server, name: "GET /orders/{id}",
		attrs: pairs{"http.method", "GET", "http.target", "/orders/17"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/orders/{id}"},
	},
	"old name holds a pattern that is no path": {
		kind: semconv.Server, name: "GET /orders/(?P<id>[0-9]+)",
		attrs: pairs{"http.method", "GET", "http.target", "/orders/17"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/orders/*"},
	},
	"HTTP client with a URL template": {
		kind:  semconv.Client,
		attrs: pairs{"http.request.method", "GET", "url.template", "/users/{id}{?page}", "url.full", "http://10.0.0.1:81/users/5?page=2"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/users/{id}", PeerIP: "10.0.0.1", PeerPort: 81},
	},
	"HTTP client that got no answer": {
		kind: semconv.Client,
		attrs: pairs{
			"http.request.method", "GET", "url.full", "http://stock:8080", "server.address", "stock", "server.port", "8080",
			"http.response.status_code", "0", "error.type", "java.net.ConnectException",
		},
		want: spanView{Protocol: "http", Method: "GET", Endpoint: "/", Code: "java.net.ConnectException", PeerPort: 8080},
	},
	"URL of something that is not HTTP": {
		kind:  semconv.Client,
		attrs: pairs{"url.full", "ftp://user:pass@10.0.0.9/pub/list", "url.scheme", "ftp"},
		want:  spanView{Protocol: "ftp", Endpoint: "/pub/*", PeerIP: "10.0.0.9"},
	},
	"otelgrpc old, client": {
		kind: semconv.Client, name: "shop.Cart/GetItem",
		attrs: pairs{
			"rpc.system", "grpc", "rpc.service", "shop.Cart", "rpc.method", "GetItem", "rpc.grpc.status_code", "0",
			"net.sock.peer.addr", "10.244.5.5", "net.sock.peer.port", "9000",
		},
		want: spanView{Protocol: "grpc", Method: "GetItem", Endpoint: "shop.Cart/GetItem", Code: "0", PeerIP: "10.244.5.5", PeerPort: 9000},
	},
	"otelgrpc new, server": {
		kind: semconv.Server, name: "shop.Cart/GetItem",
		attrs: pairs{
			"rpc.system.name", "grpc", "rpc.method", "shop.Cart/GetItem", "rpc.response.status_code", "DEADLINE_EXCEEDED", "error.type", "DEADLINE_EXCEEDED",
			"server.address", "10.244.5.5", "server.port", "9000", "network.peer.address", "10.244.1.1", "network.peer.port", "40000",
		},
		want: spanView{
			Protocol: "grpc", Method: "GetItem", Endpoint: "shop.Cart/GetItem", Code: "DEADLINE_EXCEEDED",
			IP: "10.244.5.5", Port: 9000, PeerIP: "10.244.1.1", PeerPort: 40000,
		},
	},
	"dotnet, gRPC over the HTTP client": {
		kind: semconv.Client, name: "shop.Cart/GetItem",
		attrs: pairs{
			"http.request.method", "POST", "url.full", "http://cart:9000/shop.Cart/GetItem", "http.response.status_code", "200",
			"rpc.system", "grpc", "rpc.service", "shop.Cart", "rpc.method", "GetItem", "rpc.grpc.status_code", "14", "server.address", "cart", "server.port", "9000",
		},
		want: spanView{Protocol: "grpc", Method: "GetItem", Endpoint: "shop.Cart/GetItem", Code: "14", PeerPort: 9000},
	},
	"ASP.NET Core's own gRPC attributes": {
		kind:  semconv.Server,
		attrs: pairs{"grpc.method", "/shop.Cart/GetItem", "grpc.status_code", "5", "http.method", "POST", "http.target", "/shop.Cart/GetItem"},
		want:  spanView{Protocol: "grpc", Method: "GetItem", Endpoint: "shop.Cart/GetItem", Code: "5"},
	},
	"gRPC with nothing but its system": {
		kind: semconv.Server, name: "shop.Cart/GetItem",
		attrs: pairs{"rpc.system", "grpc"},
		want:  spanView{Protocol: "grpc", Method: "GetItem", Endpoint: "shop.Cart/GetItem"},
	},
	"gRPC whose method is in the path only": {
		kind: semconv.Server, name: "handle",
		attrs: pairs{"rpc.system", "grpc", "http.target", "/shop.Cart/GetItem"},
		want:  spanView{Protocol: "grpc", Method: "GetItem", Endpoint: "shop.Cart/GetItem"},
	},
	"dubbo": {
		kind:  semconv.Client,
		attrs: pairs{"rpc.system", "apache_dubbo", "rpc.service", "com.shop.Stock", "rpc.method", "reserve", "net.peer.ip", "10.1.1.1", "net.peer.port", "20880"},
		want:  spanView{Protocol: "dubbo", Method: "reserve", Endpoint: "com.shop.Stock/reserve", PeerIP: "10.1.1.1", PeerPort: 20880},
	},
	"connect": {
		kind:  semconv.Client,
		attrs: pairs{"rpc.system", "connect_rpc", "rpc.service", "shop.Cart", "rpc.method", "Get", "rpc.connect_rpc.error_code", "not_found", "http.status_code", "404"},
		want:  spanView{Protocol: "connect", Method: "Get", Endpoint: "shop.Cart/Get", Code: "not_found"},
	},
	"json-rpc": {
		kind:  semconv.Server,
		attrs: pairs{"rpc.system.name", "jsonrpc", "rpc.method", "tools/call", "rpc.jsonrpc.error_code", "-32602"},
		want:  spanView{Protocol: "jsonrpc", Method: "call", Endpoint: "tools/call", Code: "-32602"},
	},
	"go-redis: the statement alone": {
		kind: semconv.Client, name: "get",
		attrs: pairs{"db.system", "redis", "db.statement", "get cart:17", "server.address", "127.0.0.21", "server.port", "6379"},
		want:  spanView{Protocol: "redis", Method: "GET", PeerIP: "127.0.0.21", PeerPort: 6379},
	},
	"go-redis: a pipeline": {
		kind: semconv.Client, name: "redis.pipeline set get",
		attrs: pairs{"db.system", "redis", "db.redis.num_cmd", "2", "db.statement", "set a 1\nget a"},
		want:  spanView{Protocol: "redis", Method: "PIPELINE"},
	},
	"redis, current names": {
		kind: semconv.Client, name: "HMSET",
		attrs: pairs{
			"db.system.name", "redis", "db.operation.name", "HMSET", "db.namespace", "0", "db.query.text", "HMSET k ? ?", "db.response.status_code", "WRONGTYPE",
			"network.peer.address", "10.244.9.9", "network.peer.port", "6379", "server.address", "redis", "server.port", "6380",
		},
		want: spanView{Protocol: "redis", Method: "HMSET", Code: "WRONGTYPE", PeerIP: "10.244.9.9", PeerPort: 6379},
	},
	"java agent 1.15, PostgreSQL": {
		kind: semconv.Client, name: "SELECT shop.orders",
		attrs: pairs{
			"db.system", "postgresql", "db.connection_string", "postgresql://db:5432", "db.user", "shop", "db.name", "shop", "db.statement", "SELECT * FROM orders WHERE id = ?",
			"db.operation", "SELECT", "db.sql.table", "orders", "net.peer.name", "db", "net.peer.port", "5432",
		},
		want: spanView{Protocol: "postgresql", Method: "SELECT", Endpoint: "shop.orders", PeerPort: 5432},
	},
	"PostgreSQL, current names": {
		kind: semconv.Client, name: "SELECT orders",
		attrs: pairs{
			"db.system.name", "postgresql", "db.namespace", "shop|public", "db.query.summary", "SELECT orders", "db.query.text", "SELECT * FROM orders WHERE id = $1",
			"db.response.status_code", "08P01", "error.type", "PSQLException", "server.address", "10.2.2.2",
		},
		want: spanView{Protocol: "postgresql", Method: "SELECT", Endpoint: "SELECT orders", Code: "08P01", PeerIP: "10.2.2.2"},
	},
	"python driver: a lower-case statement and no operation": {
		kind:  semconv.Client,
		attrs: pairs{"db.system", "mysql", "db.name", "shop", "db.statement", "select 1 from dual"},
		want:  spanView{Protocol: "mysql", Method: "SELECT", Endpoint: "shop"},
	},
	"statement that begins with data": {
		kind:  semconv.Client,
		attrs: pairs{"db.system", "mongodb", "db.statement", `{"find":"orders"}`, "db.name", "shop", "db.mongodb.collection", "orders"},
		want:  spanView{Protocol: "mongodb", Endpoint: "shop.orders"},
	},
	"collection that is qualified already": {
		kind:  semconv.Client,
		attrs: pairs{"db.system.name", "microsoft.sql_server", "db.operation.name", "MERGE", "db.namespace", "shop", "db.collection.name", "shop.orders"},
		want:  spanView{Protocol: "mssql", Method: "MERGE", Endpoint: "shop.orders"},
	},
	"DynamoDB through the AWS SDK: database over RPC over HTTP": {
		kind: semconv.Client, name: "DynamoDB.GetItem",
		attrs: pairs{
			"db.system", "dynamodb", "db.operation", "GetItem", "rpc.system", "aws-api", "rpc.service", "DynamoDb", "rpc.method", "GetItem",
			"http.method", "POST", "http.url", "https://dynamodb.eu-west-1.amazonaws.com/", "http.status_code", "400",
		},
		want: spanView{Protocol: "dynamodb", Method: "GetItem", Code: "400"},
	},
	"S3 through the AWS SDK: RPC over HTTP": {
		kind:  semconv.Client,
		attrs: pairs{"rpc.system", "aws-api", "rpc.service", "S3", "rpc.method", "ListBuckets", "http.request.method", "GET", "http.response.status_code", "200"},
		want:  spanView{Protocol: "aws-api", Method: "ListBuckets", Endpoint: "S3/ListBuckets", Code: "200"},
	},
	"a stray database name does not make an HTTP span a query": {
		kind:  semconv.Server,
		attrs: pairs{"db.name", "shop", "http.method", "GET", "http.route", "/x", "http.status_code", "200"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/x", Code: "200"},
	},
	"java agent 1.15, Kafka producer: its kind is its operation": {
		kind: semconv.Producer, name: "orders send",
		attrs: pairs{"messaging.system", "kafka", "messaging.destination", "orders", "messaging.destination_kind", "topic", "messaging.kafka.partition", "3"},
		want:  spanView{Protocol: "kafka", Method: "send", Endpoint: "orders"},
	},
	"java agent 1.15, Kafka consumer": {
		kind: semconv.Consumer, name: "orders process",
		attrs: pairs{"messaging.system", "kafka", "messaging.destination", "orders", "messaging.operation", "process"},
		want:  spanView{Protocol: "kafka", Method: "process", Endpoint: "orders"},
	},
	"Kafka consumer, current names: the server is the broker": {
		kind: semconv.Consumer, name: "poll orders", resource: pairs{"k8s.pod.ip", "10.244.7.7"},
		attrs: pairs{
			"messaging.system", "kafka", "messaging.destination.name", "orders", "messaging.operation.type", "receive", "messaging.operation.name", "poll",
			"server.address", "10.244.8.8", "server.port", "9092",
		},
		want: spanView{Protocol: "kafka", Method: "receive", Endpoint: "orders", IP: "10.244.7.7", PeerIP: "10.244.8.8", PeerPort: 9092},
	},
	"RabbitMQ, a queue made up for a reply": {
		kind: semconv.Producer,
		attrs: pairs{
			"messaging.system", "RabbitMQ", "messaging.destination.name", "amq.gen-XYZ", "messaging.destination.temporary", "true", "messaging.operation", "publish",
			"network.peer.address", "10.244.6.6", "network.peer.port", "5672",
		},
		want: spanView{Protocol: "rabbitmq", Method: "publish", Endpoint: "(temporary)", PeerIP: "10.244.6.6", PeerPort: 5672},
	},
	"SQS through the AWS SDK: messaging over RPC over HTTP": {
		kind: semconv.Producer,
		attrs: pairs{
			"messaging.system", "aws_sqs", "messaging.url", "https://sqs.eu-west-1.amazonaws.com/80398/orders?Action=x", "messaging.operation.name", "SendMessage",
			"rpc.system", "aws-api", "rpc.method", "SendMessage", "http.status_code", "200",
		},
		want: spanView{Protocol: "sqs", Method: "SendMessage", Endpoint: "/80398/orders", Code: "200"},
	},
	"GraphQL on an HTTP server span": {
		kind: semconv.Server,
		attrs: pairs{
			"graphql.operation.type", "query", "graphql.operation.name", "findBook", "graphql.document", "query findBook { ... }",
			"http.request.method", "POST", "http.route", "/graphql", "http.response.status_code", "200",
		},
		want: spanView{Protocol: "graphql", Method: "query", Endpoint: "findBook", Code: "200"},
	},
	"call of a function": {
		kind:  semconv.Client,
		attrs: pairs{"faas.invoked_name", "resize", "faas.invoked_provider", "aws"},
		want:  spanView{Protocol: "faas", Endpoint: "resize"},
	},
	"function called over HTTP": {
		kind:  semconv.Server,
		attrs: pairs{"faas.trigger", "http", "http.request.method", "GET", "http.route", "/resize"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/resize"},
	},
	"plain TCP protocol": {
		kind:  semconv.Client,
		attrs: pairs{"network.protocol.name", "MQTT", "server.address", "2001:db8::7", "server.port", "1883"},
		want:  spanView{Protocol: "mqtt", PeerIP: "2001:db8::7", PeerPort: 1883},
	},
	"OpenTracing through a collector": {
		kind:  semconv.Client,
		attrs: pairs{"http.method", "GET", "http.url", "/health", "peer.address", "/10.3.3.3:8081", "peer.service", "stock"},
		want:  spanView{Protocol: "http", Method: "GET", Endpoint: "/health", PeerIP: "10.3.3.3", PeerPort: 8081},
	},
	"IPv6 with brackets and zone": {
		kind:  semconv.Client,
		attrs: pairs{"network.peer.address", "[fe80::1%eth0]:53"},
		want:  spanView{PeerIP: "fe80::1", PeerPort: 53},
	},
	"resource's address wins over the socket's, which keeps its port": {
		kind: semconv.Server, resource: pairs{"app.host.ip", "10.244.2.2"},
		attrs: pairs{"network.local.address", "127.0.0.1", "network.local.port", "15006"},
		want:  spanView{IP: "10.244.2.2", Port: 15006},
	},
	"network layer as seen by a proxy": {
		kind:  semconv.Server,
		attrs: pairs{"source.address", "10.0.0.1", "source.port", "5555", "destination.address", "10.0.0.2", "destination.port", "80"},
		want:  spanView{IP: "10.0.0.2", Port: 80, PeerIP: "10.0.0.1", PeerPort: 5555},
	},
	"internal span: no direction, only what names its side": {
		kind: semconv.Internal, name: "compute",
		attrs: pairs{"server.address", "10.0.0.1", "client.address", "10.0.0.2", "network.peer.address", "10.0.0.3", "network.peer.port", "7"},
		want:  spanView{PeerIP: "10.0.0.3", PeerPort: 7},
	},
	"failure without any protocol": {
		kind:  semconv.Internal,
		attrs: pairs{"error.type", "timeout"},
		want:  spanView{Code: "timeout"},
	},
	"failure of no known type": {
		kind:  semconv.Internal,
		attrs: pairs{"error.type", "_OTHER"},
	},
	"garbage": {
		kind: semconv.Client, name: "\xff\xfe GET /",
		attrs: pairs{
			"", "x", "http", "x", "db.system", "\xff\x00 not a system", "server.address", "999.1.1.1", "server.port", "70000", "network.peer.address", ":::1",
			"network.peer.port", "-1", "net.peer.ip", "0.0.0.0", "url.full", "://?", "http.url", "", "db.statement", "\x00\x01",
		},
	},
	"nothing": {},
}

func TestSpan(t *testing.T) {
	var s semconv.Span // shared, so nothing of the previous case may remain
	for name, story := range spanStories {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(story.want, story.resolve(&s)); diff != "" {
				t.Errorf("resolved span (-want +got):\n%s", diff)
			}
		})
	}
}

// What follows the path of a URL, or stands before its host, may be secret and
// must not become an endpoint, whichever attribute the URL came in.
func TestSpanEndpointHidesSecrets(t *testing.T) {
	const want = "/pay"
	for _, text := range []string{
		"/pay?card=1", "/pay#card=1", "/pay;card=1", "https://u:p@h/pay?card=1", "https://u:p@h:1/pay;x?y#z", "u:p@h/pay?card=1",
	} {
		for _, key := range []string{"url.path", "http.target", "url.full", "http.url", "url.template"} {
			var s semconv.Span
			s.Add([]byte("http.method"), []byte("GET"))
			s.Add([]byte(key), []byte(text))
			s.Resolve(semconv.Client, nil, [16]byte{})
			if got := string(s.Endpoint); got != want {
				t.Errorf("endpoint of %s = %q is %q, want %q", key, text, got, want)
			}
		}
	}
}

func TestSpanResolveTwice(t *testing.T) {
	var s semconv.Span
	add(pairs{"rpc.system", "grpc", "rpc.service", "a.B", "rpc.method", "C", "server.address", "10.0.0.1"}, s.Add)
	s.Resolve(semconv.Server, nil, [16]byte{})
	s.Resolve(semconv.Client, nil, [16]byte{})
	want := spanView{Protocol: "grpc", Method: "C", Endpoint: "a.B/C", PeerIP: "10.0.0.1"}
	if diff := cmp.Diff(want, viewOf(&s)); diff != "" {
		t.Errorf("resolved again (-want +got):\n%s", diff)
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	for name, story := range spanStories {
		data := story.attrs.bytes()
		spanName := []byte(story.name)
		var s semconv.Span
		allocs := testing.AllocsPerRun(10, func() {
			s.Reset()
			for i := 0; i < len(data); i += 2 {
				s.Add(data[i], data[i+1])
			}
			s.Resolve(story.kind, spanName, [16]byte{})
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations per span, want none", name, allocs)
		}
	}
}

// Package semconv reads OpenTelemetry's semantic conventions: it decides
// what the attributes of a resource and of a span, in the names of any
// version since 1.4, say about the columns that people query: protocol,
// method, endpoint, response_code, the two addresses of the connection, the
// service and the place in Kubernetes.
//
// It owns nothing but these decisions. It keeps every attribute it knows by
// reference and drops the others; storing all of them as they came is the
// caller's part.
//
// # Use
//
// A [Resource] and a [Span] are filled with [Resource.Add] and [Span.Add], one
// call per attribute in any order, then read after [Resource.Resolve] and
// [Span.Resolve]. A caller that sees the same names again and again may
// remember what [Lookup] said of a name and call Set instead of Add. Values
// are text: integers in decimal, doubles in their shortest form, booleans as
// true and false, arrays as JSON.
//
// Keys are not kept; values are, until Reset, and the byte slices in the
// results may be parts of them, constants of this package or parts of the
// Resource or Span itself: read them before Reset and never change them.
// Nothing here allocates once a Span has seen its longest endpoint. The types
// are not safe for concurrent use; the package has no other state.
//
// # What a span was: the six families
//
// A span is read as one of six families. When it carries several, as a
// DynamoDB call does that is also an RPC over HTTP, the most specific one
// decides method and endpoint, in this order: database, messaging, RPC,
// GraphQL, HTTP, FaaS. A family is present when its defining attribute is
// there (the first row of each table); when none is, other attributes of a
// family count as weaker evidence, in the same order.
//
// Within a row the attribute further left wins. Later versions therefore win
// over earlier ones, and an instrumentation that writes both (http/dup) gives
// the same columns as one that writes the new names only.
//
//	database          (database spans: 1.4 to 1.25 | 1.26 to 1.28 | 1.30 and later)
//	protocol          db.system.name, db.system
//	method            db.operation.name, db.operation, db.cosmosdb.operation_type,
//	                  the first word of db.query.summary, the verb of
//	                  db.query.text or db.statement when it is a well-known one
//	endpoint          namespace.collection; else db.query.summary; else the
//	                  namespace alone unless it is a number (Redis)
//	  collection      db.collection.name, db.sql.table, db.mongodb.collection,
//	                  db.cassandra.table, db.cosmosdb.container, db.stored_procedure.name
//	  namespace       db.namespace, db.cassandra.keyspace, db.hbase.namespace, db.name,
//	                  db.redis.database_index
//	response_code     db.response.status_code, db.cosmosdb.status_code
//
//	messaging         (messaging spans: 1.4 to 1.16 | 1.17 to 1.25 | 1.26 and later)
//	protocol          messaging.system, messaging.protocol
//	method            messaging.operation.type, messaging.operation,
//	                  messaging.operation.name; else "send" for a producer, which
//	                  1.10 forbids to say otherwise than by the span's kind
//	endpoint          messaging.destination.template; else (temporary) or (anonymous)
//	                  when so marked; else messaging.destination.name,
//	                  messaging.destination, messaging.source.name,
//	                  messaging.destination_publish.name; else the path of messaging.url
//	response_code     none of its own
//
//	RPC               (RPC spans: 1.4 to 1.38 | 1.39 and later)
//	protocol          rpc.system.name, rpc.system; grpc when any grpc.* is there
//	method            rpc.method, grpc.method, grpc.path after their last slash
//	endpoint          rpc.method when fully qualified; else rpc.service/rpc.method,
//	                  else grpc.method, grpc.path, else the span's name when it
//	                  reads service/method, else the path of the HTTP request
//	response_code     rpc.response.status_code, rpc.grpc.status_code, grpc.status_code,
//	                  rpc.connect_rpc.error_code, rpc.jsonrpc.error_code
//
//	GraphQL           (GraphQL server spans, 1.13 and later)
//	protocol          graphql, by graphql.operation.name or graphql.operation.type
//	method            graphql.operation.type
//	endpoint          graphql.operation.name
//	response_code     none of its own
//
//	HTTP              (HTTP spans: 1.4 to 1.20 | 1.21 and later)
//	protocol          http, by http.request.method, http.method, http.route,
//	                  http.response.status_code, http.status_code, http.url, http.target,
//	                  http.scheme, http.flavor or http.host; url.scheme and url.full
//	                  are weak evidence of the scheme they name, https read as http
//	method            http.request.method, http.method; for _OTHER
//	                  http.request.method_original when it is a short word
//	endpoint          http.route, url.template; else the path in a span name that
//	                  reads "METHOD /path", unless that is the requested
//	                  path with digits in it; else a guess from the path of
//	                  url.path, http.target, url.full, http.url: its first word with
//	                  /api and /vN before it, and /* for the rest; none after a 404
//	response_code     http.response.status_code, http.status_code (0 means none)
//
//	FaaS              (FaaS spans, 1.4 and later)
//	protocol          faas, by faas.trigger or faas.invoked_name
//	method            faas.trigger
//	endpoint          faas.invoked_name
//	response_code     none of its own
//
// A family without a word for its protocol leaves it to
// network.protocol.name, net.protocol.name, net.app.protocol.name. Protocols
// are lower-case and go by the name they are known by (mssql for
// microsoft.sql_server, dubbo for apache_dubbo); every other value stays as
// it came. A family without a response code of its own takes the HTTP status
// that carried it, and when there is none, error.type unless it is _OTHER.
//
// An endpoint never has a query string, a fragment, path parameters or
// credentials: of anything that is a URL only the path is read. Statements
// are never an endpoint.
//
// # The connection: addresses and ports
//
// Only IP addresses are taken; host names are not resolved. The unspecified
// address counts as absent. Who is whose peer follows from the span's kind:
//
//	                  client, producer          server, consumer
//	peer_ip           network.peer.address, net.sock.peer.addr,
//	                  net.peer.ip, net.peer.name
//	                  server.socket.address     client.socket.address
//	                  upstream_address
//	                  server.address            client.address
//	                  destination.address       source.address
//	                  peer.address, peer.ipv4, peer.ipv6
//	                  the URL, http.host        http.client_ip
//	ip                the resource's, network.local.address,
//	                  net.sock.host.addr, net.host.ip, net.host.name
//	                  source.address            server.socket.address
//	                  client.address            destination.address
//	                                            server.address
//
// The exact order is that of the lists in network.go, socket before logical
// name. A port is taken from where its address came from, else from the first
// of the same side that names one: until 1.20 net.sock.peer.port was left out
// when equal to net.peer.port. client.port and source.port are the exception
// on a server, for they belong to a client that may sit behind the peer. Where
// nothing names a port, a server's own is the one in the request's URL or
// http.host, and the peer of an HTTP client has the default one of the scheme.
//
// Proxies write the address of their own caller to peer.address, in the spans of
// their calls too. So peer.address, peer.ipv4, peer.ipv6 and peer.port are not read when one of them is the
// span's own address, nor in the calls of a proxy, which upstream_address, upstream_cluster
// or upstream_cluster.name tells. What remains unknown is left empty: the trace says who was called.
//
// A consumer span of a messaging system is the client of its broker: server.*
// there names the broker (messaging spans), so it is read as a client's. A
// span of another kind has no direction; only what names peer and local side
// outright is read.
//
// # The resource
//
//	service_name, _namespace, _instance_id   service.name, service.namespace, service.instance.id
//	cluster           k8s.cluster.name, k8s.cluster.uid
//	namespace, pod, pod_uid                  k8s.namespace.name, k8s.pod.name, k8s.pod.uid
//	node              k8s.node.name; host.name when nothing names a pod (inside
//	                  a pod it is the pod's)
//	workload          k8s.deployment.name, k8s.statefulset.name, k8s.daemonset.name,
//	                  k8s.cronjob.name, k8s.job.name without the time that a CronJob
//	                  appends, k8s.replicaset.name without a pod template hash,
//	                  k8s.replicationcontroller.name
//	ip                k8s.pod.ip, app.host.ip, the first of host.ip that is neither
//	                  loopback, link-local nor multicast, net.host.ip
package semconv

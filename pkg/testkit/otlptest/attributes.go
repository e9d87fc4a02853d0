package otlptest

import (
	"strings"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
)

// clientAttributes are those of the calling side, by the conventions that its
// service follows.
func (t *trace) clientAttributes(h *hop) []*commonpb.KeyValue {
	old := h.from.service.old
	switch {
	case h.op.protocol == redisCall:
		return append(t.redis(h), t.own(h)...)
	case h.op.protocol == httpCall && old:
		return []*commonpb.KeyValue{
			Text("http.method", h.op.method), Text("http.url", h.url), Number("http.status_code", h.status), Text("http.flavor", "1.1"),
			Text("net.peer.name", h.op.service), Text("net.peer.ip", h.to.ip), Number("net.peer.port", h.to.service.port),
		}
	case h.op.protocol == httpCall:
		return []*commonpb.KeyValue{
			Text("http.request.method", h.op.method), Text("url.full", h.url), Number("http.response.status_code", h.status),
			Text("network.protocol.version", "1.1"), Text("server.address", h.op.service), Number("server.port", h.to.service.port),
			Text("network.peer.address", h.to.ip), Number("network.peer.port", h.to.service.port),
			Text("user_agent.original", t.agent), Text("app.user.id", t.user), Text("app.session.id", t.session),
		}
	case old:
		return append(rpcOld(h), Text("net.peer.name", h.op.service), Text("net.peer.ip", h.to.ip), Number("net.peer.port", h.to.service.port),
			Text("net.transport", "ip_tcp"), Text("app.user.id", t.user), Text("app.session.id", t.session))
	default:
		return append(rpcNow(h), Text("server.address", h.op.service), Number("server.port", h.to.service.port),
			Text("network.peer.address", h.to.ip), Number("network.peer.port", h.to.service.port), Text("app.user.id", t.user),
			Text("app.session.id", t.session), Text("app.tenant", "webstore-eu"), Text("enduser.role", "customer"), Number("rpc.request.metadata.size", 180+t.g.rng.IntN(60)), Number("rpc.response.body.size", t.g.rng.IntN(4000)))
	}
}

// serverAttributes are those of the called side.
func (t *trace) serverAttributes(h *hop) []*commonpb.KeyValue {
	peer := t.client
	if h.from != nil {
		peer = h.from.ip
	}
	old := h.to.service.old
	var out []*commonpb.KeyValue
	switch {
	case h.op.protocol == httpCall && old:
		out = []*commonpb.KeyValue{
			Text("http.method", h.op.method), Text("http.target", h.path), Text("http.route", h.op.name), Text("http.host", h.op.service),
			Text("http.scheme", "http"), Number("http.status_code", h.status), Text("http.flavor", "1.1"),
			Text("net.host.name", h.op.service), Text("net.host.ip", h.to.ip), Number("net.host.port", h.to.service.port),
			Text("net.sock.peer.addr", peer), Number("net.sock.peer.port", h.port),
		}
	case h.op.protocol == httpCall:
		out = []*commonpb.KeyValue{
			Text("http.request.method", h.op.method), Text("url.scheme", "http"), Text("url.path", h.path), Text("http.route", h.op.name),
			Number("http.response.status_code", h.status), Text("server.address", "webstore.example.com"), Number("server.port", h.to.service.port),
			Text("client.address", t.client), Text("network.peer.address", peer), Number("network.peer.port", h.port),
			Text("network.protocol.version", "1.1"), Text("user_agent.original", t.agent), Number("http.response.body.size", 800+t.g.rng.IntN(20000)),
		}
	case old:
		out = append(rpcOld(h), Text("net.peer.ip", peer), Number("net.peer.port", h.port), Text("net.transport", "ip_tcp"),
			Number("thread.id", 20+t.g.rng.IntN(16)), Text("thread.name", "grpc-default-executor"))
	default:
		out = append(rpcNow(h), Text("server.address", h.op.service), Number("server.port", h.to.service.port),
			Text("network.peer.address", peer), Number("network.peer.port", h.port), Text("network.local.address", h.to.ip), Text("network.type", "ipv4"), Text("network.transport", "tcp"))
	}
	return append(out, t.own(h)...)
}

func rpcNow(h *hop) []*commonpb.KeyValue {
	service, method, _ := strings.Cut(h.op.name, "/")
	return []*commonpb.KeyValue{
		Text("rpc.system", "grpc"), Text("rpc.service", service), Text("rpc.method", method), Number("rpc.grpc.status_code", h.code),
	}
}

// rpcOld has the code as text, as some instrumentations of that time wrote it.
func rpcOld(h *hop) []*commonpb.KeyValue {
	out := rpcNow(h)
	code := "OK"
	if h.failed {
		code = "DEADLINE_EXCEEDED"
	}
	out[3] = Text("rpc.grpc.status_code", code)
	return out
}

func (t *trace) redis(h *hop) []*commonpb.KeyValue {
	statement := h.op.name + " cart:" + t.user
	if t.g.chance(50) {
		return []*commonpb.KeyValue{
			Text("db.system", "redis"), Text("db.statement", statement), Text("net.peer.name", redisHost), Text("net.peer.ip", redisIP),
			Number("net.peer.port", redisPort), Number("db.redis.database_index", 0), Text("net.transport", "ip_tcp"),
		}
	}
	return []*commonpb.KeyValue{
		Text("db.system.name", "redis"), Text("db.operation.name", h.op.name), Text("db.query.text", statement), Text("server.address", redisHost),
		Number("server.port", redisPort), Text("network.peer.address", redisIP), Number("network.peer.port", redisPort), Text("db.namespace", "0"),
	}
}

// own are the attributes that the shop's own code adds.
func (t *trace) own(h *hop) []*commonpb.KeyValue {
	out := []*commonpb.KeyValue{
		Text("app.user.id", t.user), Text("app.session.id", t.session), Text("app.currency", "EUR"), Text("app.tenant", "webstore-eu"),
		Text("enduser.role", "customer"), Text("app.release.channel", "stable"), Text("app.region", "eu-west-1"), boolean("app.cache.hit", t.g.chance(70)),
	}
	if h.op == getProduct || strings.Contains(h.op.name, "{id}") {
		out = append(out, Text("app.product.id", t.product))
	}
	if h.op == placeOrder || h.op == charge || h.op == shipOrder {
		out = append(out, Text("app.order.id", t.order), double("app.order.amount", float64(t.g.rng.IntN(40000))/100))
	}
	return out
}

func (t *trace) code(h *hop) []*commonpb.KeyValue {
	return []*commonpb.KeyValue{
		Text("code.function.name", h.to.service.name+"."+h.op.internal), Text("code.file.path", "/app/internal/"+h.to.service.name+"/handler."+h.to.service.language),
		Number("code.line.number", 100+t.g.rng.IntN(4)), Number("app.items", t.g.rng.IntN(30)), Text("feature_flag.key", "newCheckout"), Text("feature_flag.result.variant", "off"),
		Number("thread.id", 1+t.g.rng.IntN(16)),
	}
}

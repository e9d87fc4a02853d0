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
			text("http.method", h.op.method), text("http.url", h.url), number("http.status_code", h.status), text("http.flavor", "1.1"),
			text("net.peer.name", h.op.service), text("net.peer.ip", h.to.ip), number("net.peer.port", h.to.service.port),
		}
	case h.op.protocol == httpCall:
		return []*commonpb.KeyValue{
			text("http.request.method", h.op.method), text("url.full", h.url), number("http.response.status_code", h.status),
			text("network.protocol.version", "1.1"), text("server.address", h.op.service), number("server.port", h.to.service.port),
			text("network.peer.address", h.to.ip), number("network.peer.port", h.to.service.port),
			text("user_agent.original", t.agent), text("app.user.id", t.user), text("app.session.id", t.session),
		}
	case old:
		return append(rpcOld(h), text("net.peer.name", h.op.service), text("net.peer.ip", h.to.ip), number("net.peer.port", h.to.service.port),
			text("net.transport", "ip_tcp"), text("app.user.id", t.user), text("app.session.id", t.session))
	default:
		return append(rpcNow(h), text("server.address", h.op.service), number("server.port", h.to.service.port),
			text("network.peer.address", h.to.ip), number("network.peer.port", h.to.service.port), text("app.user.id", t.user),
			text("app.session.id", t.session), text("app.tenant", "webstore-eu"), text("enduser.role", "customer"), number("rpc.request.metadata.size", 180+t.g.rng.IntN(60)), number("rpc.response.body.size", t.g.rng.IntN(4000)))
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
			text("http.method", h.op.method), text("http.target", h.path), text("http.route", h.op.name), text("http.host", h.op.service),
			text("http.scheme", "http"), number("http.status_code", h.status), text("http.flavor", "1.1"),
			text("net.host.name", h.op.service), text("net.host.ip", h.to.ip), number("net.host.port", h.to.service.port),
			text("net.sock.peer.addr", peer), number("net.sock.peer.port", h.port),
		}
	case h.op.protocol == httpCall:
		out = []*commonpb.KeyValue{
			text("http.request.method", h.op.method), text("url.scheme", "http"), text("url.path", h.path), text("http.route", h.op.name),
			number("http.response.status_code", h.status), text("server.address", "webstore.example.com"), number("server.port", h.to.service.port),
			text("client.address", t.client), text("network.peer.address", peer), number("network.peer.port", h.port),
			text("network.protocol.version", "1.1"), text("user_agent.original", t.agent), number("http.response.body.size", 800+t.g.rng.IntN(20000)),
		}
	case old:
		out = append(rpcOld(h), text("net.peer.ip", peer), number("net.peer.port", h.port), text("net.transport", "ip_tcp"),
			number("thread.id", 20+t.g.rng.IntN(16)), text("thread.name", "grpc-default-executor"))
	default:
		out = append(rpcNow(h), text("server.address", h.op.service), number("server.port", h.to.service.port),
			text("network.peer.address", peer), number("network.peer.port", h.port), text("network.local.address", h.to.ip), text("network.type", "ipv4"), text("network.transport", "tcp"))
	}
	return append(out, t.own(h)...)
}

func rpcNow(h *hop) []*commonpb.KeyValue {
	service, method, _ := strings.Cut(h.op.name, "/")
	return []*commonpb.KeyValue{
		text("rpc.system", "grpc"), text("rpc.service", service), text("rpc.method", method), number("rpc.grpc.status_code", h.code),
	}
}

// rpcOld has the code as text, as some instrumentations of that time wrote it.
func rpcOld(h *hop) []*commonpb.KeyValue {
	out := rpcNow(h)
	code := "OK"
	if h.failed {
		code = "DEADLINE_EXCEEDED"
	}
	out[3] = text("rpc.grpc.status_code", code)
	return out
}

func (t *trace) redis(h *hop) []*commonpb.KeyValue {
	statement := h.op.name + " cart:" + t.user
	if t.g.chance(50) {
		return []*commonpb.KeyValue{
			text("db.system", "redis"), text("db.statement", statement), text("net.peer.name", redisHost), text("net.peer.ip", redisIP),
			number("net.peer.port", redisPort), number("db.redis.database_index", 0), text("net.transport", "ip_tcp"),
		}
	}
	return []*commonpb.KeyValue{
		text("db.system.name", "redis"), text("db.operation.name", h.op.name), text("db.query.text", statement), text("server.address", redisHost),
		number("server.port", redisPort), text("network.peer.address", redisIP), number("network.peer.port", redisPort), text("db.namespace", "0"),
	}
}

// own are the attributes that the shop's own code adds.
func (t *trace) own(h *hop) []*commonpb.KeyValue {
	out := []*commonpb.KeyValue{
		text("app.user.id", t.user), text("app.session.id", t.session), text("app.currency", "EUR"), text("app.tenant", "webstore-eu"),
		text("enduser.role", "customer"), text("app.release.channel", "stable"), text("app.region", "eu-west-1"), boolean("app.cache.hit", t.g.chance(70)),
	}
	if h.op == getProduct || strings.Contains(h.op.name, "{id}") {
		out = append(out, text("app.product.id", t.product))
	}
	if h.op == placeOrder || h.op == charge || h.op == shipOrder {
		out = append(out, text("app.order.id", t.order), double("app.order.amount", float64(t.g.rng.IntN(40000))/100))
	}
	return out
}

func (t *trace) code(h *hop) []*commonpb.KeyValue {
	return []*commonpb.KeyValue{
		text("code.function.name", h.to.service.name+"."+h.op.internal), text("code.file.path", "/app/internal/"+h.to.service.name+"/handler."+h.to.service.language),
		number("code.line.number", 100+t.g.rng.IntN(4)), number("app.items", t.g.rng.IntN(30)), text("feature_flag.key", "newCheckout"), text("feature_flag.result.variant", "off"),
		number("thread.id", 1+t.g.rng.IntN(16)),
	}
}

package query

import (
	"encoding/json"
	"strconv"
	"strings"

	"go.opentelemetry.io/collector/pdata/pcommon"
)

// Types of attributes by the semantic conventions. The table holds text, so what is not
// listed is a string: an id of digits must not become a number.
var (
	whole = set("http.status_code", "http.response.status_code", "http.request.resend_count", "http.resend_count",
		"http.request.body.size", "http.response.body.size", "http.request.size", "http.response.size",
		"http.request_content_length", "http.response_content_length",
		"net.peer.port", "net.host.port", "net.sock.peer.port", "net.sock.host.port", "server.port", "client.port", "network.peer.port", "network.local.port",
		"source.port", "destination.port", "rpc.grpc.status_code", "rpc.jsonrpc.error_code", "rpc.message.id", "message.id",
		"rpc.message.compressed_size", "rpc.message.uncompressed_size", "message.compressed_size", "message.uncompressed_size",
		"messaging.batch.message_count", "messaging.message.body.size", "messaging.message.envelope.size", "messaging.kafka.offset", "messaging.kafka.message.offset",
		"messaging.kafka.partition", "messaging.kafka.destination.partition", "messaging.message_payload_size_bytes",
		"db.redis.database_index", "db.response.returned_rows", "db.operation.batch.size", "db.cassandra.page_size",
		"thread.id", "code.lineno", "code.line.number", "code.column", "code.column.number", "process.pid", "process.parent_pid", "k8s.container.restart_count", "faas.coldstart_duration",
		"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.request.max_tokens")
	truth = set("exception.escaped", "error", "faas.coldstart", "messaging.message.tombstone", "messaging.kafka.message.tombstone",
		"messaging.destination.temporary", "messaging.destination.anonymous", "db.cassandra.idempotence", "session.cached", "tls.established", "tls.resumed")
	fraction = set("sampler.param", "gen_ai.request.temperature", "gen_ai.request.top_p")
	texts    = set("process.command_args", "host.ip", "host.mac", "container.command_args", "container.image.tags", "container.image.repo_digests",
		"aws.dynamodb.table_names", "gen_ai.response.finish_reasons", "tls.client.supported_ciphers")
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// textLists are prefixes of keys whose values are lists of texts.
var textLists = []string{
	"http.request.header.", "http.response.header.", "rpc.grpc.request.metadata.", "rpc.grpc.response.metadata.",
	"rpc.request.metadata.", "rpc.response.metadata.",
}

// Value sets to to what an attribute's text stands for. A text that is not of the
// attribute's type stays a string.
func Value(key, text string, to pcommon.Value) {
	switch {
	case whole[key]:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && strconv.FormatInt(n, 10) == text {
			to.SetInt(n)
			return
		}
	case truth[key]:
		if text == "true" || text == "false" {
			to.SetBool(text == "true")
			return
		}
	case fraction[key]:
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			to.SetDouble(f)
			return
		}
	case isList(key):
		var list []string
		if strings.HasPrefix(text, "[") && json.Unmarshal([]byte(text), &list) == nil {
			s := to.SetEmptySlice()
			for _, v := range list {
				s.AppendEmpty().SetStr(v)
			}
			return
		}
	}
	to.SetStr(text)
}

func isList(key string) bool {
	if texts[key] {
		return true
	}
	for _, p := range textLists {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// TypeOf returns the type of an attribute's value as TraceQL names it: int, bool, float or
// string.
func TypeOf(key, text string) string {
	v := pcommon.NewValueEmpty()
	Value(key, text, v)
	switch v.Type() {
	case pcommon.ValueTypeInt:
		return "int"
	case pcommon.ValueTypeBool:
		return "bool"
	case pcommon.ValueTypeDouble:
		return "float"
	default:
		return "string"
	}
}

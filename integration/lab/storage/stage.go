package main

import (
	"context"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// stageDDL holds spans as they arrive and derives the other columns in SQL: the
// lab needs plausible values in those columns, not the rules of pkg/semconv.
const stageDDL = `
CREATE TABLE stage (
  block UInt32,
  trace_id FixedString(32), span_id FixedString(16), parent_span_id String, trace_state String, flags UInt32,
  name LowCardinality(String), kind Enum8('unspecified'=0,'internal'=1,'server'=2,'client'=3,'producer'=4,'consumer'=5),
  start_time DateTime64(9,'UTC'), duration_ns Int64,
  status_code Enum8('unset'=0,'ok'=1,'error'=2), status_message String,
  resource LowCardinality(String), scope_name LowCardinality(String), scope_version LowCardinality(String),
  schema_url LowCardinality(String),
  attributes Map(LowCardinality(String), String),
  event_times Array(DateTime64(9,'UTC')), event_names Array(LowCardinality(String)), event_attributes Array(Map(LowCardinality(String), String)),
  link_traces Array(String), link_spans Array(String), link_attributes Array(Map(LowCardinality(String), String)),

  service_name LowCardinality(String) DEFAULT JSONExtractString(resource, 'service.name'),
  service_namespace LowCardinality(String) DEFAULT JSONExtractString(resource, 'service.namespace'),
  service_instance_id LowCardinality(String) DEFAULT JSONExtractString(resource, 'service.instance.id'),
  pod LowCardinality(String) DEFAULT JSONExtractString(resource, 'k8s.pod.name'),
  pod_uid LowCardinality(String) DEFAULT JSONExtractString(resource, 'k8s.pod.uid'),
  node LowCardinality(String) DEFAULT JSONExtractString(resource, 'k8s.node.name'),
  cluster LowCardinality(String) DEFAULT JSONExtractString(resource, 'k8s.cluster.name'),
  namespace LowCardinality(String) DEFAULT JSONExtractString(resource, 'k8s.namespace.name'),
  workload LowCardinality(String) DEFAULT JSONExtractString(resource, 'k8s.deployment.name'),
  agent_id LowCardinality(String) DEFAULT concat('agent-', node),
  ip IPv6 DEFAULT toIPv6(JSONExtractString(resource, 'k8s.pod.ip')),
  protocol LowCardinality(String) DEFAULT multiIf(attributes['rpc.system'] != '', 'grpc', attributes['db.system'] != '' OR attributes['db.system.name'] != '', 'redis',
    attributes['http.request.method'] != '' OR attributes['http.method'] != '', 'http', ''),
  method LowCardinality(String) DEFAULT multiIf(protocol = 'grpc', attributes['rpc.method'], protocol = 'redis', splitByChar(' ', attributes['db.query.text'] || attributes['db.statement'])[1],
    protocol = 'http', attributes['http.request.method'] || attributes['http.method'], ''),
  endpoint LowCardinality(String) DEFAULT multiIf(protocol = 'grpc', attributes['rpc.service'], protocol = 'http', attributes['http.route'], ''),
  response_code LowCardinality(String) DEFAULT multiIf(protocol = 'grpc', attributes['rpc.grpc.status_code'],
    protocol = 'http', attributes['http.response.status_code'] || attributes['http.status_code'], ''),
  port UInt16 DEFAULT if(kind = 'server', toUInt16OrZero(attributes['server.port'] || attributes['net.host.port']), 0),
  peer_ip IPv6 DEFAULT toIPv6OrDefault(attributes['network.peer.address'] || attributes['net.peer.ip'] || attributes['net.sock.peer.addr']),
  peer_port UInt16 DEFAULT toUInt16OrZero(attributes['network.peer.port'] || attributes['net.peer.port'] || attributes['net.sock.peer.port'])
) ENGINE = MergeTree ORDER BY block`

const stageColumns = "block, trace_id, span_id, parent_span_id, trace_state, flags, name, kind, start_time, duration_ns, status_code, status_message, " +
	"resource, scope_name, scope_version, schema_url, attributes, event_times, event_names, event_attributes, link_traces, link_spans, link_attributes"

// fill creates the staging table unless a kept directory contains it. Each
// block has the size of one planned insert.
func (l *lab) fill(ctx context.Context, native string) error {
	if have, err := l.ask(ctx, "SELECT count() FROM stage"); err == nil && have == strconv.Itoa(l.spans) {
		return nil
	}
	for _, sql := range []string{"DROP TABLE IF EXISTS stage", stageDDL} {
		if _, err := l.ask(ctx, sql); err != nil {
			return err
		}
	}
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{native}})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // everything is sent by then
	g := otlptest.New(1, otlptest.Options{SpansPerSecond: max(1, l.perHour/3600)})
	for block := range l.blocks() {
		req := g.Request(min(l.block, l.spans-block*l.block))
		if err := store(ctx, conn, block, req); err != nil {
			return err
		}
	}
	return nil
}

func store(ctx context.Context, conn driver.Conn, block int, req *coltracepb.ExportTraceServiceRequest) error {
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO stage ("+stageColumns+")")
	if err != nil {
		return err
	}
	defer func() { _ = batch.Close() }() // nothing to close after Send
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				if err := batch.Append(row(block, rs, ss, s)...); err != nil {
					return err
				}
			}
		}
	}
	return batch.Send()
}

func (l *lab) blocks() int { return (l.spans + l.block - 1) / l.block }

func row(block int, rs *tracepb.ResourceSpans, ss *tracepb.ScopeSpans, s *tracepb.Span) []any {
	times, names, attrs := []time.Time{}, []string{}, []*pairs{}
	for _, e := range s.Events {
		times = append(times, time.Unix(0, int64(e.TimeUnixNano)))
		names = append(names, e.Name)
		attrs = append(attrs, texts(e.Attributes))
	}
	traces, spans, linkAttrs := []string{}, []string{}, []*pairs{}
	for _, k := range s.Links {
		traces = append(traces, hex.EncodeToString(k.TraceId))
		spans = append(spans, hex.EncodeToString(k.SpanId))
		linkAttrs = append(linkAttrs, texts(k.Attributes))
	}
	return []any{
		uint32(block), hex.EncodeToString(s.TraceId), hex.EncodeToString(s.SpanId), hex.EncodeToString(s.ParentSpanId), s.TraceState, s.Flags,
		s.Name, int8(s.Kind), time.Unix(0, int64(s.StartTimeUnixNano)), int64(s.EndTimeUnixNano - s.StartTimeUnixNano),
		int8(s.Status.GetCode()), s.Status.GetMessage(), texts(rs.Resource.Attributes).object(), ss.Scope.Name, ss.Scope.Version, rs.SchemaUrl, texts(s.Attributes),
		times, names, attrs, traces, spans, linkAttrs,
	}
}

// pairs holds attributes as texts in wire order, as the writer stores them: a
// Go map would shuffle the keys of each row and spoil compression.
type pairs struct{ keys, values []string }

func texts(kvs []*commonpb.KeyValue) *pairs {
	p := &pairs{}
	for _, kv := range kvs {
		p.keys = append(p.keys, kv.Key)
		p.values = append(p.values, valueText(kv.Value))
	}
	return p
}

func valueText(v *commonpb.AnyValue) string {
	switch v := v.Value.(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	default: // lists in resources of the generated spans
		return "[]"
	}
}

// Put and Iterator make pairs a map for the client library.
func (p *pairs) Put(key, value any) {
	p.keys = append(p.keys, key.(string))       //nolint:forcetypeassert // the column's type
	p.values = append(p.values, value.(string)) //nolint:forcetypeassert // the column's type
}

func (p *pairs) Iterator() column.MapIterator { return &iterator{pairs: p, at: -1} }

type iterator struct {
	*pairs
	at int
}

func (i *iterator) Next() bool { i.at++; return i.at < len(i.keys) }
func (i *iterator) Key() any   { return i.keys[i.at] }
func (i *iterator) Value() any { return i.values[i.at] }

// object returns the pairs as a JSON object.
func (p *pairs) object() string {
	b := []byte{'{'}
	for i, key := range p.keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendQuote(b, key)
		b = append(b, ':')
		b = strconv.AppendQuote(b, p.values[i])
	}
	return string(append(b, '}'))
}

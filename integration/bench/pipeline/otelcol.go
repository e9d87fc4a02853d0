package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// otelcol measures the collector's pipeline: lz4, acks=all and partitioned by
// trace, like ours; batches of 50,000 into the exporter's schema.
func (b *bench) otelcol(ctx context.Context) (figures, error) {
	otlp, err := measured.FreeAddr()
	if err != nil {
		return figures{}, err
	}
	const topic = "otlp_spans"
	if err := createTopic(ctx, b.kafka, topic, b.partitions); err != nil {
		return figures{}, err
	}
	receive := fmt.Sprintf(`
receivers:
  otlp: {protocols: {grpc: {endpoint: %q, max_recv_msg_size_mib: 64}}}
exporters:
  kafka:
    brokers: [%q]
    traces: {topic: %s, encoding: otlp_proto}
    partition_traces_by_id: true
    producer: {compression: lz4, required_acks: -1, max_message_bytes: 10000000}
    sending_queue: {enabled: false}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines: {traces: {receivers: [otlp], exporters: [kafka]}}
`, otlp, b.kafka, topic)
	write := fmt.Sprintf(`
receivers:
  kafka:
    brokers: [%q]
    group_id: otelcol
    initial_offset: earliest
    traces: {topics: [%s], encoding: otlp_proto}
processors:
  batch: {send_batch_size: 50000, send_batch_max_size: 50000, timeout: 1s}
exporters:
  clickhouse:
    endpoint: tcp://%s?dial_timeout=10s&async_insert=0
    database: otel
    create_schema: true
    sending_queue: {enabled: false}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines: {traces: {receivers: [kafka], processors: [batch], exporters: [clickhouse]}}
`, b.kafka, topic, b.engine.NativeAddr())
	run := func(name, yaml string) func() (*measured.Process, error) {
		return func() (*measured.Process, error) {
			file := filepath.Join(b.dir, name+".yaml")
			if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
				return nil, err
			}
			return measured.Start(b.verbose, nil, b.collector, "--config", file)
		}
	}
	if err := b.engine.Conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS otel"); err != nil {
		return figures{}, err
	}
	return b.measure(ctx, pipeline{
		name: "collector", otlp: otlp, receiver: run("receive", receive), writer: run("write", write),
		count: "SELECT count() FROM otel.otel_traces", table: "otel.otel_traces",
	})
}

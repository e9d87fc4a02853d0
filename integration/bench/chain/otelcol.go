package chain

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// OTelCol returns the chain of a collector's program: lz4, acks=all and
// partitioned by trace, like ours; batches of 50,000 or a second into the
// exporter's schema.
func (s *Site) OTelCol(ctx context.Context, collector string) (Chain, error) {
	otlp, err := measured.FreeAddr()
	if err != nil {
		return Chain{}, err
	}
	const topic = "otlp_spans"
	if err := createTopic(ctx, s.Kafka, topic, s.Partitions); err != nil {
		return Chain{}, err
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
`, otlp, s.Kafka, topic)
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
`, s.Kafka, topic, s.ClickHouse.NativeAddr())
	run := func(name, yaml string) Start {
		return func(string) (*measured.Process, error) {
			file := filepath.Join(s.Dir, name+".yaml")
			if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
				return nil, err
			}
			return measured.Start(s.Verbose, nil, collector, "--config", file)
		}
	}
	if err := s.ClickHouse.Conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS otel"); err != nil {
		return Chain{}, err
	}
	return Chain{Name: "collector", OTLP: otlp, Receiver: run("receive", receive), Writer: run("write", write), Table: "otel.otel_traces"}, nil
}

package main

import (
	"fmt"
	"io"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

func report(w io.Writer, o options, all []figures) {
	fmt.Fprintf(w, "\n%d spans in requests of %d, %d partitions\n\n", o.spans, o.batch, o.partitions)
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = f.name
	}
	measured.Report(w, names, all, []measured.Figure[figures]{
		{Name: "OTLP/gRPC to Kafka, CPU us a span", Format: "%.2f", Of: func(f figures) float64 { return f.gateway }},
		{Name: "Kafka to ClickHouse, CPU us a span", Format: "%.2f", Of: func(f figures) float64 { return f.writer }},
		{Name: "ClickHouse, insert and merges, CPU us a span", Format: "%.2f", Of: func(f figures) float64 { return f.clickhouse }},
		{Name: "gateway, peak resident MB", Format: "%.0f", Of: func(f figures) float64 { return float64(f.gatewayRSS) / 1e6 }},
		{Name: "writer, peak resident MB", Format: "%.0f", Of: func(f figures) float64 { return float64(f.writerRSS) / 1e6 }},
		{Name: "on disk, bytes a span after OPTIMIZE FINAL", Format: "%.1f", Of: func(f figures) float64 { return f.bytesPerSpan }},
		{Name: "time to send, s", Format: "%.1f", Of: func(f figures) float64 { return f.sendSeconds }},
		{Name: "time to write, s", Format: "%.1f", Of: func(f figures) float64 { return f.writeSeconds }},
	})
}

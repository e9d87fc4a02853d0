package main

import (
	"fmt"
	"io"
)

// report prints a markdown table, with ratios where there is something to compare.
func report(w io.Writer, o options, all []figures) {
	fmt.Fprintf(w, "\n%d spans in requests of %d, %d partitions\n\n", o.spans, o.batch, o.partitions)
	fmt.Fprint(w, "| figure |")
	for _, f := range all {
		fmt.Fprintf(w, " %s |", f.name)
	}
	if len(all) == 2 {
		fmt.Fprint(w, " ratio |")
	}
	fmt.Fprint(w, "\n|---|")
	for range all {
		fmt.Fprint(w, "---|")
	}
	if len(all) == 2 {
		fmt.Fprint(w, "---|")
	}
	fmt.Fprintln(w)
	for _, row := range []struct {
		name   string
		format string
		of     func(figures) float64
	}{
		{"OTLP/gRPC to Kafka, CPU us a span", "%.2f", func(f figures) float64 { return f.gateway }},
		{"Kafka to ClickHouse, CPU us a span", "%.2f", func(f figures) float64 { return f.writer }},
		{"ClickHouse, insert and merges, CPU us a span", "%.2f", func(f figures) float64 { return f.clickhouse }},
		{"gateway, peak resident MB", "%.0f", func(f figures) float64 { return float64(f.gatewayRSS) / 1e6 }},
		{"writer, peak resident MB", "%.0f", func(f figures) float64 { return float64(f.writerRSS) / 1e6 }},
		{"on disk, bytes a span after OPTIMIZE FINAL", "%.1f", func(f figures) float64 { return f.bytesPerSpan }},
		{"time to send, s", "%.1f", func(f figures) float64 { return f.sendSeconds }},
		{"time to write, s", "%.1f", func(f figures) float64 { return f.writeSeconds }},
	} {
		fmt.Fprintf(w, "| %s |", row.name)
		for _, f := range all {
			fmt.Fprintf(w, " "+row.format+" |", row.of(f))
		}
		if len(all) == 2 {
			fmt.Fprintf(w, " %.2f |", row.of(all[0])/row.of(all[1]))
		}
		fmt.Fprintln(w)
	}
}

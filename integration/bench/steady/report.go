package main

import (
	"io"
	"slices"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

func report(w io.Writer, names []string, all [][]figures) {
	const mega = 1e6
	measured.Report(w, names, all, []measured.Figure[[]figures]{
		{Name: "gateway, CPU us a span", Format: "%.1f", Of: median(func(f figures) float64 { return f.gateway })},
		{Name: "writer, CPU us a span", Format: "%.1f", Of: median(func(f figures) float64 { return f.writer })},
		{Name: "ClickHouse, CPU us a span", Format: "%.1f", Of: median(func(f figures) float64 { return f.clickhouse })},
		{Name: "all of them, CPU us a span", Format: "%.1f", Of: median(func(f figures) float64 { return f.gateway + f.writer + f.clickhouse })},
		{Name: "INSERTs a second", Format: "%.2f", Of: median(func(f figures) float64 { return f.inserts })},
		{Name: "spans in one INSERT", Format: "%.0f", Of: median(func(f figures) float64 { return f.rows })},
		{Name: "rows merged for each span, views included", Format: "%.2f", Of: median(func(f figures) float64 { return f.merged })},
		{Name: "parts alive at the end, views included", Format: "%.0f", Of: median(func(f figures) float64 { return f.parts })},
		{Name: "acknowledged to visible, p50 ms", Format: "%.0f", Of: median(func(f figures) float64 { return f.p50.Seconds() * 1e3 })},
		{Name: "acknowledged to visible, p99 ms", Format: "%.0f", Of: median(func(f figures) float64 { return f.p99.Seconds() * 1e3 })},
		{Name: "gateway, peak resident MB", Format: "%.0f", Of: median(func(f figures) float64 { return float64(f.gatewayRSS) / mega })},
		{Name: "a writer, peak resident MB", Format: "%.0f", Of: median(func(f figures) float64 { return float64(f.writerRSS) / mega })},
		{Name: "ClickHouse, peak resident MB", Format: "%.0f", Of: median(func(f figures) float64 { return float64(f.clickhouseRSS) / mega })},
	})
}

// median returns the median of a figure over the rounds of a load.
func median(of func(figures) float64) func([]figures) float64 {
	return func(rounds []figures) float64 {
		values := make([]float64, len(rounds))
		for i, f := range rounds {
			values[i] = of(f)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
}

package main

import (
	"fmt"
	"strings"
)

// peerColumn is the least terminal width that leaves room for addresses.
const peerColumn = 112

// graph prints the service graph as a table.
func (t *terminal) graph(edges []edge) {
	t.println(t.style(bold, t.edgeRow("FROM", " ", "TO", "OVER", "PEER", "REQUESTS", "RATE/S", "ERRORS", "P50 MS", "P95 MS", "P99 MS")))
	for _, e := range edges {
		quantiles := make([]string, 3)
		for i, q := range e.ms[:min(len(e.ms), 3)] {
			quantiles[i] = fmt.Sprintf("%.2f", q)
		}
		line := t.edgeRow(e.caller, "→", e.callee, e.protocol, e.peer,
			thousands(e.requests), fmt.Sprintf("%.1f", e.perSecond), percent(e.errorsPercent), quantiles...)
		if e.errorsPercent > 0 {
			line = t.style(red, line)
		}
		t.println(line)
	}
}

func (t *terminal) edgeRow(from, arrow, to, over, peer, requests, rate, errors string, ms ...string) string {
	var row strings.Builder
	fmt.Fprintf(&row, "%s %s %s %s", fit(from, serviceWidth), arrow, fit(to, serviceWidth), fit(over, 5))
	if t.width >= peerColumn {
		row.WriteString(" " + fit(peer, 12))
	}
	fmt.Fprintf(&row, " %8s %6s %7s", requests, rate, errors)
	for _, q := range ms {
		fmt.Fprintf(&row, " %7s", q)
	}
	return row.String()
}

func percent(p float64) string {
	if p == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", p)
}

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// print writes the table of a run. Faults that were under way together share the spans of
// their time, so the column of spans adds up to more than the last row.
func (r *result) print(w io.Writer) {
	engine := "Apache Kafka, 3 brokers"
	if r.o.engine != "apache" {
		engine = "the embedded broker"
	}
	fmt.Fprintf(w, "seed %d, %s, ClickHouse embedded, %s, %d CPUs, %s\n\n", r.o.seed, engine, runtime.Version(), runtime.NumCPU(), machine())
	fmt.Fprintln(w, "| kind | faults | spans | lost | twice | longest time to settle |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range r.kinds {
			if !yield(name) {
				return
			}
		}
	}) {
		row(w, name, *r.kinds[name])
	}
	row(w, "all", r.all)
	fmt.Fprintf(w, "\n%d spans and %d flows acknowledged in %s, %d requests sent more than once; %d dead letters, %d parked\n",
		r.all.spans, r.flows, r.took.Round(time.Second), r.again, r.letters, r.parked)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range r.most {
			if !yield(name) {
				return
			}
		}
	}) {
		u := r.most[name]
		fmt.Fprintf(w, "%s: at most %.0f MiB, %.0f goroutines, %.0f files\n", name, u.memory/(1<<20), u.goroutines, u.files)
	}
	for _, v := range r.violations {
		fmt.Fprintln(w, "VIOLATION:", v)
	}
	if r.evidence != "" {
		fmt.Fprintln(w, "logs, commits and differences are in", r.evidence)
	}
}

func row(w io.Writer, name string, t tally) {
	fmt.Fprintf(w, "| %s | %d | %d | %d | %d | %.1f s |\n", name, t.faults, t.spans, t.lost, t.twice, t.settle.Seconds())
}

// machine describes the processor.
func machine() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return runtime.GOARCH
}

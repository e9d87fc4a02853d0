package measured

import (
	"fmt"
	"io"
	"time"
)

// Figure is one row of a report: a value of a program's result.
type Figure[R any] struct {
	Name   string
	Format string // format of a float64
	Of     func(R) float64
}

// Report writes a markdown table with a column for each program, and the ratio
// of the first to the second if there are two.
func Report[R any](w io.Writer, programs []string, results []R, figures []Figure[R]) {
	fmt.Fprint(w, "| figure |")
	for _, name := range programs {
		fmt.Fprintf(w, " %s |", name)
	}
	compared := len(results) == 2
	if compared {
		fmt.Fprint(w, " ratio |")
	}
	fmt.Fprint(w, "\n|---|")
	for range programs {
		fmt.Fprint(w, "---|")
	}
	if compared {
		fmt.Fprint(w, "---|")
	}
	fmt.Fprintln(w)
	for _, f := range figures {
		fmt.Fprintf(w, "| %s |", f.Name)
		for _, r := range results {
			fmt.Fprintf(w, " "+f.Format+" |", f.Of(r))
		}
		if compared {
			fmt.Fprintf(w, " %.2f |", f.Of(results[0])/f.Of(results[1]))
		}
		fmt.Fprintln(w)
	}
}

// MicrosEach returns the microseconds of CPU time for each of n.
func MicrosEach(cpu time.Duration, n int) float64 {
	return float64(cpu.Nanoseconds()) / 1e3 / float64(n)
}

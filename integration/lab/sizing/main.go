// Command sizing calculates the resources for a rate of spans, stage by stage,
// and what breaks first in an installation with defaults as the rate grows. It
// measures nothing: each input figure names the command that measured it.
//
//	go run ./integration/lab/sizing --spans-per-second 10e6
//	go run ./integration/lab/sizing --json
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "sizing:", err)
		os.Exit(1)
	}
}

// defaultLoad returns the programs' defaults on machines of a common kind.
func defaultLoad() Load {
	return Load{
		SpanBytes: 669, RetentionDays: 30, Replicas: 3, KafkaRetentionHours: 24,
		Cores: 16, DiskBytes: 8e12, DiskBytesPerSecond: 500e6, NetBytesPerSecond: 1.25e9, Use: 0.4,
	}
}

func run(args []string, out io.Writer) error {
	l := defaultLoad()
	var rates []float64
	var asJSON bool
	flags := pflag.NewFlagSet("sizing", pflag.ContinueOnError)
	flags.SetOutput(out)
	flags.Float64SliceVar(&rates, "spans-per-second", []float64{10e3, 100e3, 1e6, 10e6}, "rates to plan for")
	flags.Float64Var(&l.FlowsPerSecond, "flows-per-second", 0, "rows of flow data: one per connection, minute and end")
	flags.Float64Var(&l.SpanBytes, "span-bytes", l.SpanBytes, "OTLP bytes per span, before compression")
	flags.Float64Var(&l.RetentionDays, "retention-days", l.RetentionDays, "retention.spans, and the same for flows")
	flags.Float64Var(&l.Replicas, "replicas", l.Replicas, "kafka.replication; a ClickHouse shard has at most two replicas")
	flags.Float64Var(&l.KafkaRetentionHours, "kafka-retention-hours", l.KafkaRetentionHours, "kafka.retention")
	flags.Float64Var(&l.Cores, "cores", l.Cores, "cores of one machine")
	flags.Float64Var(&l.DiskBytes, "disk", l.DiskBytes, "bytes of one machine's disk")
	flags.Float64Var(&l.DiskBytesPerSecond, "disk-rate", l.DiskBytesPerSecond, "bytes per second that one machine's disk writes")
	flags.Float64Var(&l.NetBytesPerSecond, "net-rate", l.NetBytesPerSecond, "bytes per second of one machine's network, in each direction")
	flags.Float64Var(&l.Use, "use", l.Use, "usable share of cores and rates; the rest is for peaks, queries and catching up")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var plans []Plan
	for _, rate := range rates {
		one := l
		one.SpansPerSecond = rate
		if err := one.Validate(); err != nil {
			return err
		}
		plans = append(plans, PlanFor(one))
	}
	if len(plans) == 0 {
		return errors.New("spans-per-second: required")
	}
	if asJSON {
		return writeJSON(out, plans, Breaks(l))
	}
	return writeTables(out, plans, Breaks(l))
}

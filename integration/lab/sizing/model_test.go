package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
)

func loadOf(change func(*Load)) Load {
	l := defaultLoad()
	l.SpansPerSecond = 1e6
	change(&l)
	return l
}

func near(a, b float64) bool { return math.Abs(a-b) <= 0.01*math.Max(math.Abs(a), math.Abs(b)) }

func TestPlan(t *testing.T) {
	tests := map[string]struct {
		change func(*Load)
		got    func(Plan) float64
		want   float64
	}{
		"a span's CPU in the gateway":               {func(*Load) {}, func(p Plan) float64 { return p.GatewayCores }, 3.17},
		"flows take CPU as spans do":                {func(l *Load) { l.FlowsPerSecond = 1e6 }, func(p Plan) float64 { return p.WriterCores }, 11.54},
		"one replica may always be away":            {func(l *Load) { l.SpansPerSecond = 10 }, func(p Plan) float64 { return p.Gateways }, 2},
		"a slow network asks for gateways":          {func(l *Load) { l.NetBytesPerSecond = 125e6 }, func(p Plan) float64 { return p.Gateways }, 14},
		"what came in goes out to Kafka compressed": {func(*Load) {}, func(p Plan) float64 { return p.KafkaBytesPerSecond }, 138.2e6},
		"no fewer partitions than the default":      {func(l *Load) { l.SpansPerSecond = 10 }, func(p Plan) float64 { return p.Partitions }, 12},
		"as many partitions for each shard":         {func(*Load) {}, func(p Plan) float64 { return math.Mod(p.Partitions, p.Shards) }, 0},
		"the disk decides about shards":             {func(*Load) {}, func(p Plan) float64 { return p.Shards }, 20},
		"CPU does when data go soon":                {func(l *Load) { l.RetentionDays = 1; l.Cores = 4 }, func(p Plan) float64 { return p.Shards }, 4},
		"a day of spans":                            {func(*Load) {}, func(p Plan) float64 { return p.DiskPerDay }, 4.095e12},
		"two copies of a month":                     {func(*Load) {}, func(p Plan) float64 { return p.Disk }, 245.7e12},
		"one copy is not replicated":                {func(l *Load) { l.Replicas = 1 }, func(p Plan) float64 { return p.ReplicationPerShard + p.KeeperRequests }, 0},
		"few spans wait for a second":               {func(l *Load) { l.SpansPerSecond = 12e3 }, func(p Plan) float64 { return p.RowsPerInsert }, 6000},
		"hardly any spans are an insert each":       {func(l *Load) { l.SpansPerSecond = 2 }, func(p Plan) float64 { return p.InsertsPerShard }, 2},
		"Kafka keeps a day of each replica":         {func(*Load) {}, func(p Plan) float64 { return p.KafkaDisk }, 35.8e12},
		"brokers for a slow disk, whose size does":  {func(l *Load) { l.DiskBytesPerSecond = 50e6 }, func(p Plan) float64 { return p.Brokers }, 21},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l := loadOf(tc.change)
			if err := l.Validate(); err != nil {
				t.Fatal(err)
			}
			if got := tc.got(PlanFor(l)); !near(got, tc.want) {
				t.Errorf("%g, want %g", got, tc.want)
			}
		})
	}
}

// Limits are sorted by rate, and more of a resource moves its own limit.
func TestBreaks(t *testing.T) {
	first := Breaks(loadOf(func(*Load) {}))
	for i, l := range first[1:] {
		if l.SpansPerSecond < first[i].SpansPerSecond {
			t.Errorf("%q comes before %q", first[i].What, l.What)
		}
	}
	if what := Breaks(loadOf(func(l *Load) { l.DiskBytes = 1e11 }))[0].What; !strings.HasPrefix(what, "ClickHouse's disk") {
		t.Errorf("with a small disk the first limit is: %s", what)
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(*Load){
		"span-bytes":       func(l *Load) { l.SpanBytes = 0 },
		"cores":            func(l *Load) { l.Cores = math.NaN() },
		"use":              func(l *Load) { l.Use = 2 },
		"flows-per-second": func(l *Load) { l.FlowsPerSecond = -1 },
	} {
		if err := loadOf(change).Validate(); err == nil || !strings.HasPrefix(err.Error(), name+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The page shows the program's output.
func TestPageShowsOutput(t *testing.T) {
	var out bytes.Buffer
	if err := run(nil, &out); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../../docs/sizing.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(strings.TrimSpace(out.String()), "\n\n") {
		if strings.HasPrefix(part, "|") && !strings.Contains(string(page), part) {
			t.Errorf("docs/sizing.md lacks:\n%s", part)
		}
	}
	out.Reset()
	if err := run([]string{"--json", "--spans-per-second", "10e6"}, &out); err != nil {
		t.Fatal(err)
	}
	var all struct{ Plans []Plan }
	if err := json.Unmarshal(out.Bytes(), &all); err != nil || len(all.Plans) != 1 || all.Plans[0].Load.SpansPerSecond != 10e6 {
		t.Errorf("%v: %s", err, out.String())
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
)

func writeJSON(w io.Writer, plans []Plan, breaks []Limit) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Figures []figure `json:"figures"`
		Plans   []Plan   `json:"plans"`
		Breaks  []Limit  `json:"breaks"`
	}{figures, plans, breaks})
}

func writeTables(w io.Writer, plans []Plan, breaks []Limit) error {
	var b strings.Builder
	row := func(name string, cell func(Plan) string) {
		b.WriteString("| " + name + " |")
		for _, p := range plans {
			b.WriteString(" " + cell(p) + " |")
		}
		b.WriteByte('\n')
	}
	row("spans/s", func(p Plan) string { return short(p.Load.SpansPerSecond, "") })
	b.WriteString("|---|" + strings.Repeat("---|", len(plans)) + "\n")
	row("all agents, cores", func(p Plan) string { return digits(p.AgentCores) })
	row("gateways, cores", func(p Plan) string { return digits(p.GatewayCores) })
	row("gateways, replicas", func(p Plan) string { return digits(p.Gateways) })
	row("network into gateways", func(p Plan) string { return short(p.GatewayBytesPerSecond, "B/s") })
	row("network into Kafka, compressed", func(p Plan) string { return short(p.KafkaBytesPerSecond, "B/s") })
	row("partitions, and members of the group at most", func(p Plan) string { return digits(p.Partitions) })
	row("brokers, because of", func(p Plan) string { return digits(p.Brokers) + ", " + p.BrokersBecause })
	row("Kafka, disk of all brokers", func(p Plan) string { return short(p.KafkaDisk, "B") })
	row("writers, cores", func(p Plan) string { return digits(p.WriterCores) })
	row("writers, replicas", func(p Plan) string { return digits(p.Writers) })
	row("ClickHouse, cores for each copy", func(p Plan) string { return digits(p.ClickHouseCores) })
	row("shards, because of", func(p Plan) string { return digits(p.Shards) + ", " + p.ShardsBecause })
	row("inserts/s a shard", func(p Plan) string { return digits(p.InsertsPerShard) })
	row("rows an insert", func(p Plan) string { return short(p.RowsPerInsert, "") })
	row("new parts/s a shard", func(p Plan) string { return digits(p.PartsPerShard) })
	row("ClickHouse, disk a day, one copy", func(p Plan) string { return short(p.DiskPerDay, "B") })
	row("ClickHouse, disk, all copies, whole retention", func(p Plan) string { return short(p.Disk, "B") })
	row("a replica fetches", func(p Plan) string { return short(p.ReplicationPerShard, "B/s") })
	row("Keeper, requests/s", func(p Plan) string { return digits(p.KeeperRequests) })
	b.WriteString("\nOne server, one broker and one ClickHouse with their defaults end at:\n\n| spans/s | what | change |\n|---|---|---|\n")
	for _, l := range breaks {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", short(l.SpansPerSecond, ""), l.What, l.Change)
	}
	b.WriteString("\n| figure | value | from |\n|---|---|---|\n")
	for _, f := range figures {
		fmt.Fprintf(&b, "| %s | %s %s | %s |\n", f.Name, digits(f.Value), f.Unit, f.Source)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// digits formats v with three significant digits.
func digits(v float64) string {
	if v >= 100 || v == math.Trunc(v) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// short formats a number with a letter for thousands.
func short(v float64, unit string) string {
	for _, step := range []struct {
		size   float64
		letter string
	}{{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= step.size {
			return strings.TrimSpace(digits(v/step.size) + " " + step.letter + unit)
		}
	}
	return strings.TrimSpace(digits(v) + " " + unit)
}

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Load is the load to carry, and the machines that carry it.
type Load struct {
	SpansPerSecond      float64 `json:"spans_per_second"`
	FlowsPerSecond      float64 `json:"flows_per_second"`
	SpanBytes           float64 `json:"span_bytes"` // OTLP bytes, before compression
	RetentionDays       float64 `json:"retention_days"`
	Replicas            float64 `json:"replicas"` // of each Kafka partition; of each ClickHouse shard at most two
	KafkaRetentionHours float64 `json:"kafka_retention_hours"`
	Cores               float64 `json:"cores"`                 // of one machine
	DiskBytes           float64 `json:"disk_bytes"`            // of one machine
	DiskBytesPerSecond  float64 `json:"disk_bytes_per_second"` // bytes per second that one machine writes
	NetBytesPerSecond   float64 `json:"net_bytes_per_second"`  // bytes per second into and out of one machine
	Use                 float64 `json:"use"`                   // usable share of cores, disk and network
}

// figure is a measured or assumed number, with its origin.
type figure struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Source string  `json:"source"`
}

// Cost of a span at each stage. A flow counts as a span with a third of the
// bytes.
var (
	agentCPU      = figure{"agent, CPU a span", 2.53, "us", "make bench-agent, at 20,000 spans/s"}
	gatewayCPU    = figure{"gateway, CPU a span", 3.17, "us", "make bench-pipeline"}
	writerCPU     = figure{"writer, CPU a span", 5.77, "us", "make bench-pipeline"}
	clickhouseCPU = figure{"ClickHouse, inserts and merges, CPU a span", 6.31, "us", "make bench-pipeline"}
	spanDisk      = figure{"ClickHouse, disk a span", 47.4, "bytes", "make bench-pipeline"}
	flowDisk      = figure{"ClickHouse, disk a flow", 47.4, "bytes", "assumed to be a span's; the regular rows of integration/bench/queries take 11"}
	kafkaRatio    = figure{"Kafka, bytes saved by snappy", 4.84, "times", "go test -run '^$' -bench Encode ./pkg/kafka, one record a batch"}
	flowBytes     = figure{"Kafka, bytes of a flow before compression", 223, "bytes", "assumed to be a third of a span's"}
	keeperCalls   = figure{"Keeper, requests a part and replica", 16, "requests", "counted on two shards of two replicas; see ProfileEvents of your ZooKeeperTransactions"}
	// A partition is one loop that decodes, then waits for the INSERT.
	partitionRate = figure{"writer, spans/s of one partition", 1e6 / (5.77 + 6.31), "spans/s", "make bench-pipeline: writer and ClickHouse after each other"}
)

var figures = []figure{agentCPU, gatewayCPU, writerCPU, clickhouseCPU, spanDisk, flowDisk, kafkaRatio, flowBytes, keeperCalls, partitionRate}

// The programs' defaults, and recommendations of others.
const (
	defaultPartitions = 12        // kafka.partitions
	maxBatchRows      = 100_000   // writer.max_batch_rows
	maxBatchBytes     = 24 << 20  // writer.max_batch_bytes; columns take about as much as OTLP
	batchWait         = 1.0       // seconds, writer.max_batch_wait
	dedupWindow       = 600.0     // seconds, writer.dedup_window
	dedupBytes        = 256 << 20 // writer.dedup_bytes
	tokensKept        = 10_000    // inserts that a table remembers, migrations/params.go
	tokensFor         = 300.0     // seconds that tokens must last: a writer's crash and the next one's start
	partsAnInsert     = 2         // in the table, and in the one that a materialized view fills
	brokerPartitions  = 4_000     // partition replicas per broker, as recommended by Kafka's documentation
	diskFull          = 0.8       // share of a disk, which leaves room for merges
)

// Plan is the resources for a load.
type Plan struct {
	Load                  Load    `json:"load"`
	AgentCores            float64 `json:"agent_cores"` // of all agents together
	GatewayCores          float64 `json:"gateway_cores"`
	Gateways              float64 `json:"gateways"`
	GatewayBytesPerSecond float64 `json:"gateway_bytes_per_second"`
	KafkaBytesPerSecond   float64 `json:"kafka_bytes_per_second"` // compressed, before replication
	Partitions            float64 `json:"partitions"`             // of the topic of spans
	Brokers               float64 `json:"brokers"`
	BrokersBecause        string  `json:"brokers_because"`
	KafkaDisk             float64 `json:"kafka_disk"`        // of all brokers
	ConsumersAtMost       float64 `json:"consumers_at_most"` // a group cannot use more members than partitions
	WriterCores           float64 `json:"writer_cores"`
	Writers               float64 `json:"writers"`
	ClickHouseCores       float64 `json:"clickhouse_cores"` // on each set of replicas
	Shards                float64 `json:"shards"`
	ShardsBecause         string  `json:"shards_because"`
	InsertsPerShard       float64 `json:"inserts_per_shard"` // a second
	RowsPerInsert         float64 `json:"rows_per_insert"`
	PartsPerShard         float64 `json:"parts_per_shard"`       // a second
	DiskPerDay            float64 `json:"disk_per_day"`          // one copy
	Disk                  float64 `json:"disk"`                  // all copies for the whole retention
	ReplicationPerShard   float64 `json:"replication_per_shard"` // bytes a second that a replica fetches
	KeeperRequests        float64 `json:"keeper_requests"`       // a second
}

// need is the amount of something that one resource requires.
type need struct {
	because string
	n       float64
}

// most returns the greatest need.
func most(needs ...need) (n float64, because string) {
	m := slices.MaxFunc(needs, func(a, b need) int { return cmp.Compare(a.n, b.n) })
	return math.Ceil(m.n), m.because
}

// copies returns the number of replicas of a ClickHouse shard: two match the
// safety of three brokers, because Kafka holds what is not stored.
func (l Load) copies() float64 { return min(l.Replicas, 2) }

// rows returns spans plus flows.
func (l Load) rows() float64 { return l.SpansPerSecond + l.FlowsPerSecond }

// Validate reports the first figure that makes a calculation impossible.
func (l Load) Validate() error {
	for name, v := range map[string]float64{
		"spans-per-second": l.SpansPerSecond, "span-bytes": l.SpanBytes, "retention-days": l.RetentionDays, "replicas": l.Replicas,
		"kafka-retention-hours": l.KafkaRetentionHours, "cores": l.Cores, "disk": l.DiskBytes, "disk-rate": l.DiskBytesPerSecond,
		"net-rate": l.NetBytesPerSecond, "use": l.Use,
	} {
		if !(v > 0) || math.IsInf(v, 0) {
			return fmt.Errorf("%s: %g is not positive", name, v)
		}
	}
	if l.Use > 1 {
		return fmt.Errorf("use: %g is more than all", l.Use)
	}
	if !(l.FlowsPerSecond >= 0) || math.IsInf(l.FlowsPerSecond, 0) {
		return fmt.Errorf("flows-per-second: %g is negative", l.FlowsPerSecond)
	}
	return nil
}

// PlanFor returns the plan for l, which must be valid.
func PlanFor(l Load) Plan {
	p := Plan{Load: l}
	cores := func(rate float64, f figure) float64 { return rate * f.Value / 1e6 }
	machine, net, disk := l.Cores*l.Use, l.NetBytesPerSecond*l.Use, l.DiskBytesPerSecond*l.Use

	p.AgentCores = cores(l.rows(), agentCPU)
	p.GatewayCores = cores(l.rows(), gatewayCPU)
	p.GatewayBytesPerSecond = l.SpansPerSecond*l.SpanBytes + l.FlowsPerSecond*flowBytes.Value
	p.Gateways, _ = most(need{"two, so that one may be away", 2}, need{"CPU", p.GatewayCores / machine}, need{"network", p.GatewayBytesPerSecond / net})

	p.DiskPerDay = 86400 * (l.SpansPerSecond*spanDisk.Value + l.FlowsPerSecond*flowDisk.Value)
	p.Disk = p.DiskPerDay * l.RetentionDays * l.copies()
	p.ClickHouseCores = cores(l.rows(), clickhouseCPU)
	p.RowsPerInsert = math.Floor(min(maxBatchRows, maxBatchBytes/l.SpanBytes))
	p.Partitions = max(defaultPartitions, math.Ceil(l.SpansPerSecond/(partitionRate.Value*l.Use)))
	p.Shards, p.ShardsBecause = most(need{"one is enough", 1}, need{"CPU", p.ClickHouseCores / machine},
		need{"disk", p.DiskPerDay * l.RetentionDays / (l.DiskBytes * diskFull)},
		need{"inserts", l.SpansPerSecond / p.RowsPerInsert * tokensFor / tokensKept})
	// Give each shard the same number of partitions: a partition belongs to one
	// shard.
	p.Partitions = math.Ceil(p.Partitions/p.Shards) * p.Shards
	p.ConsumersAtMost = p.Partitions
	p.WriterCores = cores(l.rows(), writerCPU)
	p.Writers, _ = most(need{"two, so that one may be away", 2}, need{"CPU", p.WriterCores / machine})
	all := inserts(l.SpansPerSecond, min(p.Writers*p.Shards, p.Partitions), p.RowsPerInsert)
	p.InsertsPerShard = all / p.Shards
	p.RowsPerInsert = l.SpansPerSecond / all
	p.PartsPerShard = p.InsertsPerShard * partsAnInsert
	if l.FlowsPerSecond > 0 {
		p.PartsPerShard *= 2
	}
	p.ReplicationPerShard = p.DiskPerDay / 86400 / p.Shards * (l.copies() - 1)
	if l.copies() > 1 {
		p.KeeperRequests = p.PartsPerShard * p.Shards * l.copies() * keeperCalls.Value
	}

	p.KafkaBytesPerSecond = p.GatewayBytesPerSecond / kafkaRatio.Value
	written := p.KafkaBytesPerSecond * l.Replicas
	p.KafkaDisk = written * 3600 * l.KafkaRetentionHours
	// In: from gateways and leaders. Out: to followers and writers, which is as
	// much.
	p.Brokers, p.BrokersBecause = most(need{"replicas", l.Replicas}, need{"disk's speed", written / disk}, need{"network", written / net},
		need{"disk", p.KafkaDisk / (l.DiskBytes * diskFull)}, need{"partitions", 2 * p.Partitions * l.Replicas / brokerPartitions})
	return p
}

// inserts is how many INSERTs of spans all writers make in a second: each makes
// one for each shard every batchWait, unless what it has is full before.
func inserts(rate, groups, rows float64) float64 {
	return max(min(rate, groups/batchWait), rate/rows)
}

// Limit is a rate at which an installation with defaults reaches a limit.
type Limit struct {
	SpansPerSecond float64 `json:"spans_per_second"`
	What           string  `json:"what"`
	Change         string  `json:"change"`
}

// Breaks returns the limits of an installation with defaults, lowest rate
// first: one server with all roles, one broker and one ClickHouse, each on its
// own machine. Only the machines, the spans' bytes and the retentions of l
// count.
func Breaks(l Load) []Limit {
	batch := math.Floor(min(maxBatchRows, maxBatchBytes/l.SpanBytes))
	limits := []Limit{
		{
			defaultPartitions * dedupBytes / (dedupWindow * l.SpanBytes),
			"copies of requests by clients other than agents are recognized for less than ten minutes",
			"writer.dedup_bytes, or more kafka.partitions",
		},
		{
			l.DiskBytes * diskFull / (l.RetentionDays * 86400 * spanDisk.Value),
			"ClickHouse's disk is full before spans are old enough to go",
			"retention.spans; then clickhouse.cluster with more shards",
		},
		{
			l.DiskBytes * diskFull * kafkaRatio.Value / (l.KafkaRetentionHours * 3600 * l.SpanBytes),
			"the broker's disk is full before records are old enough to go",
			"kafka.retention, or kafka.compression: zstd; then more brokers",
		},
		{
			l.NetBytesPerSecond / l.SpanBytes,
			"the network into the gateway is full",
			"replicas of the server; gzip or zstd at the clients",
		},
		{
			l.DiskBytesPerSecond * kafkaRatio.Value / l.SpanBytes,
			"the broker's disk does not write fast enough",
			"kafka.compression: zstd; then more brokers",
		},
		{
			defaultPartitions * partitionRate.Value,
			"each partition's loop is busy all the time, and writers fall behind whatever their number",
			"kafka.partitions, which is chosen once",
		},
		{
			l.Cores * 1e6 / (gatewayCPU.Value + writerCPU.Value),
			"the server's CPU is used up",
			"replicas of the server, or roles apart",
		},
		{
			l.Cores * 1e6 / clickhouseCPU.Value,
			"ClickHouse's CPU is used up by inserts and merges, with no query yet",
			"clickhouse.cluster with more shards",
		},
		{
			tokensKept / tokensFor * batch,
			"ClickHouse remembers inserts for less than five minutes",
			"writer.max_batch_bytes with writer.memory_bytes; then more shards",
		},
	}
	slices.SortStableFunc(limits, func(a, b Limit) int { return cmp.Compare(a.SpansPerSecond, b.SpansPerSecond) })
	return limits
}

package clickhouse

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// SpanKey is what makes two spans the same one.
type SpanKey struct {
	TraceID [16]byte
	SpanID  [8]byte
	Start   int64 // nanoseconds since the Unix epoch
}

// FlowKey is what makes two flows the same one.
type FlowKey struct {
	Agent            string
	NetworkNamespace uint64
	Connection       uint64
	End              int64    // nanoseconds since the Unix epoch
	IP               [16]byte // the local address, by which it is found; IPv4 as v4-mapped
}

const (
	// lookupKeys bounds one question: as many keys as a full block has rows. They travel
	// as an external table of some 5 MB, beside the SQL.
	lookupKeys = 100_000
	// lookupSpan bounds the time that one question is about. The table is
	// sorted by hour first: keys of two hours are found in two places.
	lookupSpan = time.Hour
	// keysTable is the name of the external table that holds the keys of a question.
	keysTable = "wanted"
)

// ExistingSpans returns the subset of keys that is stored. It asks the table that
// Inserter writes, by its primary key, with one question for each hour that the keys
// span: at the given shard and, with anyShard, at the others for the keys that it lacks,
// because rows stored before a shard was added stay where they are.
//
// On a Replicated table the replica first fetches the parts that its peers have, so that
// it finds what another replica acknowledged.
func (d *DB) ExistingSpans(ctx context.Context, shard int, anyShard bool, keys []SpanKey) (map[SpanKey]struct{}, error) {
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, func(a, b SpanKey) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), bytes.Compare(a.TraceID[:], b.TraceID[:]))
	})
	return lookUp(ctx, d, shard, anyShard, sorted, func(keys []SpanKey, found map[SpanKey]struct{}) question {
		var (
			traceID proto.ColStr
			spanID  = proto.ColFixedStr{Size: 16}
			start   proto.ColInt64
		)
		return question{
			table:   "spans_local",
			sql:     lookupSQL(d.cfg.Database, keys),
			keys:    spanKeyColumns(keys),
			results: proto.Results{{Name: "trace_id", Data: &traceID}, {Name: "span_id", Data: &spanID}, {Name: "start", Data: &start}},
			take: func() error {
				for i := range start.Rows() {
					k := SpanKey{Start: start.Row(i)}
					if _, err := hex.Decode(k.TraceID[:], traceID.RowBytes(i)); err != nil {
						return fmt.Errorf("read trace_id: %w", err)
					}
					if _, err := hex.Decode(k.SpanID[:], spanID.Row(i)); err != nil {
						return fmt.Errorf("read span_id: %w", err)
					}
					found[k] = struct{}{}
				}
				return nil
			},
		}
	})
}

// ExistingFlows does the same for flows.
func (d *DB) ExistingFlows(ctx context.Context, shard int, anyShard bool, keys []FlowKey) (map[FlowKey]struct{}, error) {
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, func(a, b FlowKey) int {
		return cmp.Or(cmp.Compare(a.End, b.End), bytes.Compare(a.IP[:], b.IP[:]))
	})
	return lookUp(ctx, d, shard, anyShard, sorted, func(keys []FlowKey, found map[FlowKey]struct{}) question {
		var (
			agent                 = new(proto.ColStr).LowCardinality()
			namespace, connection proto.ColUInt64
			end                   proto.ColInt64
			ip                    proto.ColIPv6
		)
		return question{
			table: "flows_local",
			sql:   lookupFlowsSQL(d.cfg.Database, keys),
			keys:  flowKeyColumns(keys),
			results: proto.Results{
				{Name: "agent_id", Data: agent},
				{Name: "network_namespace", Data: &namespace},
				{Name: "connection", Data: &connection},
				{Name: "end", Data: &end},
				{Name: "ip", Data: &ip},
			},
			take: func() error {
				for i := range end.Rows() {
					found[FlowKey{agent.Row(i), namespace.Row(i), connection.Row(i), end.Row(i), ip.Row(i)}] = struct{}{}
				}
				return nil
			},
		}
	})
}

// timed is a key with the time that its table is sorted by.
type timed interface {
	comparable
	at() int64
}

func (k SpanKey) at() int64 { return k.Start }
func (k FlowKey) at() int64 { return k.End }

// chunk returns how many of the keys, sorted by time, go into one question.
func chunk[K timed](sorted []K) int {
	limit := min(len(sorted), lookupKeys)
	end := sorted[0].at() + int64(lookupSpan)
	for n := 1; n < limit; n++ {
		if sorted[n].at() >= end {
			return n
		}
	}
	return limit
}

// question is one SELECT that refers to keysTable. ClickHouse's answer is decoded into results block by
// block, and take is called after each.
type question struct {
	table, sql string
	keys       proto.Input // columns of keysTable
	results    proto.Results
	take       func() error
}

// lookUp asks for all keys, sorted by time, in chunks. An answer may have others too, which are left out.
func lookUp[K timed](ctx context.Context, d *DB, shard int, anyShard bool, sorted []K, about func(keys []K, found map[K]struct{}) question) (map[K]struct{}, error) {
	found := make(map[K]struct{})
	for rest := sorted; len(rest) > 0; {
		n := chunk(rest)
		missing := rest[:n]
		// The first question learns how many shards there are.
		for i := 0; len(missing) > 0 && (i == 0 || anyShard && i < d.shards.count()); i++ {
			q := about(missing, found)
			if addr, err := d.ask(ctx, nearest(shard, i), q); err != nil {
				return nil, fmt.Errorf("look up %d keys in %s.%s at %s: %w", len(missing), d.cfg.Database, q.table, addr, readable(err))
			}
			missing = without(missing, found)
		}
		rest = rest[n:]
	}
	if len(found) == 0 {
		return found, nil
	}
	stored := make(map[K]struct{}, len(found))
	for _, k := range sorted {
		if _, ok := found[k]; ok {
			stored[k] = struct{}{}
		}
	}
	return stored, nil
}

// without returns those of keys that are not found. It leaves keys as they are.
func without[K timed](keys []K, found map[K]struct{}) []K {
	if len(found) == 0 {
		return keys
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k K) bool {
		_, ok := found[k]
		return ok
	})
}

// nearest is the order in which shards are asked: first own, then all others.
func nearest(own, i int) int {
	switch {
	case i == 0:
		return own
	case i <= own:
		return i - 1
	default:
		return i
	}
}

func (d *DB) ask(ctx context.Context, shard int, q question) (addr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	return d.shards.run(ctx, shard, func(ctx context.Context, c *conn) error {
		if err := d.catchUp(ctx, c.client, q.table); err != nil {
			return err
		}
		return c.client.Do(ctx, ch.Query{
			Body:          q.sql,
			Settings:      lookupSettings(),
			ExternalTable: keysTable,
			ExternalData:  q.keys,
			Result:        q.results,
			OnResult:      func(context.Context, proto.Block) error { return q.take() },
		})
	})
}

// lookupSettings make an answer whole, whatever the user's profile says: rows that are not shown
// would be stored again.
func lookupSettings() []ch.Setting {
	settings := []ch.Setting{ch.SettingInt("limit", 0), ch.SettingInt("offset", 0), ch.SettingInt("use_query_cache", 0)}
	for _, mode := range []string{"read_overflow_mode", "result_overflow_mode", "timeout_overflow_mode", "set_overflow_mode", "transfer_overflow_mode"} {
		settings = append(settings, ch.Setting{Key: mode, Value: "throw", Important: true})
	}
	return settings
}

// catchUp makes a replica fetch the parts that its shard had when it was asked.
func (d *DB) catchUp(ctx context.Context, client *ch.Client, table string) error {
	if d.cfg.Cluster == "" {
		return nil
	}
	var replicas proto.ColUInt64
	err := client.Do(ctx, ch.Query{
		Body:   "SELECT count() AS n FROM system.replicas WHERE database = '" + d.cfg.Database + "' AND table = '" + table + "'",
		Result: proto.Results{{Name: "n", Data: &replicas}},
	})
	if err != nil || replicas.Rows() == 0 || replicas.Row(0) == 0 {
		return err
	}
	return client.Do(ctx, ch.Query{Body: syncReplicaSQL(d.cfg.Database, table)})
}

func syncReplicaSQL(database, table string) string {
	return "SYSTEM SYNC REPLICA " + database + "." + table + " LIGHTWEIGHT"
}

// lookupSQL asks for keys, which are sorted by start. The time window and the
// trace ids are a prefix of the sort key.
func lookupSQL(database string, keys []SpanKey) string {
	return "SELECT trace_id, span_id, toUnixTimestamp64Nano(start_time) AS start FROM " + database + ".spans_local" +
		" WHERE " + betweenSQL("start_time", keys[0].Start, keys[len(keys)-1].Start) + " AND (trace_id, span_id) IN " + keysTable
}

func spanKeyColumns(keys []SpanKey) proto.Input {
	traceID, spanID := new(proto.ColStr), &proto.ColFixedStr{Size: 16}
	var text [32]byte
	for i := range keys {
		traceID.AppendBytes(text[:hex.Encode(text[:], keys[i].TraceID[:])])
		spanID.Append(text[:hex.Encode(text[:], keys[i].SpanID[:])])
	}
	return proto.Input{{Name: "trace_id", Data: traceID}, {Name: "span_id", Data: spanID}}
}

// lookupFlowsSQL asks for keys, which are sorted by end. The time window and the addresses are a
// prefix of the sort key; the caller compares the rest of a key.
func lookupFlowsSQL(database string, keys []FlowKey) string {
	return "SELECT agent_id, network_namespace, connection, toUnixTimestamp64Nano(time) AS end, ip FROM " + database + ".flows_local" +
		" WHERE " + betweenSQL("time", keys[0].End, keys[len(keys)-1].End) + " AND (ip, connection) IN " + keysTable
}

func flowKeyColumns(keys []FlowKey) proto.Input {
	ip, connection := new(proto.ColIPv6), new(proto.ColUInt64)
	for i := range keys {
		ip.Append(keys[i].IP)
		connection.Append(keys[i].Connection)
	}
	return proto.Input{{Name: "ip", Data: ip}, {Name: "connection", Data: connection}}
}

// betweenSQL holds a column of time to nanoseconds since 1970, both included, in a form that reaches the primary key.
func betweenSQL(column string, first, last int64) string {
	return fmt.Sprintf("%[1]s >= fromUnixTimestamp64Nano(toInt64(%[2]d), 'UTC') AND %[1]s <= fromUnixTimestamp64Nano(toInt64(%[3]d), 'UTC')", column, first, last)
}

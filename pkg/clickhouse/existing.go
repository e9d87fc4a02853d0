package clickhouse

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
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

const (
	// lookupKeys bounds one question. 1000 keys are 58 kB of SQL, and
	// ClickHouse reads 256 kB.
	lookupKeys = 1000
	// lookupSpan bounds the time that one question is about. The table is
	// sorted by hour first: keys of two hours are found in two places.
	lookupSpan = time.Hour
)

// ExistingSpans returns those of keys that the shard has stored. It asks the
// table that Inserter writes, by its primary key, in as few questions as the
// number and the times of the keys allow.
//
// On a Replicated table the replica that is asked first fetches what the
// others have, so that what was acknowledged elsewhere is found.
func (d *DB) ExistingSpans(ctx context.Context, shard int, keys []SpanKey) (map[SpanKey]struct{}, error) {
	found := make(map[SpanKey]struct{})
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, func(a, b SpanKey) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), bytes.Compare(a.TraceID[:], b.TraceID[:]))
	})
	for len(sorted) > 0 {
		n := chunk(sorted)
		if err := d.lookUp(ctx, shard, sorted[:n], found); err != nil {
			return nil, err
		}
		sorted = sorted[n:]
	}
	return found, nil
}

// chunk returns how many of the keys, sorted by start, go into one question.
func chunk(sorted []SpanKey) int {
	limit := min(len(sorted), lookupKeys)
	end := sorted[0].Start + int64(lookupSpan)
	for n := 1; n < limit; n++ {
		if sorted[n].Start >= end {
			return n
		}
	}
	return limit
}

func (d *DB) lookUp(ctx context.Context, shard int, keys []SpanKey, found map[SpanKey]struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	var (
		traceID proto.ColStr
		spanID  = proto.ColFixedStr{Size: 16}
		start   proto.ColInt64
	)
	addr, err := d.shards.run(ctx, shard, func(ctx context.Context, c *conn) error {
		if err := d.catchUp(ctx, c.client); err != nil {
			return err
		}
		return c.client.Do(ctx, ch.Query{
			Body: lookupSQL(d.cfg.Database, keys),
			Result: proto.Results{
				{Name: "trace_id", Data: &traceID},
				{Name: "span_id", Data: &spanID},
				{Name: "start", Data: &start},
			},
			OnResult: func(context.Context, proto.Block) error {
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
		})
	})
	if err != nil {
		return fmt.Errorf("look up %d spans in %s.spans_local at %s: %w", len(keys), d.cfg.Database, addr, readable(err))
	}
	return nil
}

// catchUp makes a replica fetch the parts that its shard had when it was asked.
func (d *DB) catchUp(ctx context.Context, client *ch.Client) error {
	if d.cfg.Cluster == "" {
		return nil
	}
	var replicas proto.ColUInt64
	err := client.Do(ctx, ch.Query{
		Body:   "SELECT count() AS n FROM system.replicas WHERE database = '" + d.cfg.Database + "' AND table = 'spans_local'",
		Result: proto.Results{{Name: "n", Data: &replicas}},
	})
	if err != nil || replicas.Rows() == 0 || replicas.Row(0) == 0 {
		return err
	}
	return client.Do(ctx, ch.Query{Body: syncReplicaSQL(d.cfg.Database)})
}

func syncReplicaSQL(database string) string {
	return "SYSTEM SYNC REPLICA " + database + ".spans_local LIGHTWEIGHT"
}

// lookupSQL asks for keys, which are sorted by start. The time window and the
// trace ids are a prefix of the sort key.
func lookupSQL(database string, keys []SpanKey) string {
	var b strings.Builder
	b.WriteString("SELECT trace_id, span_id, toUnixTimestamp64Nano(start_time) AS start FROM " + database + ".spans_local" +
		" WHERE start_time >= fromUnixTimestamp64Nano(toInt64(" + strconv.FormatInt(keys[0].Start, 10) + "), 'UTC')" +
		" AND start_time <= fromUnixTimestamp64Nano(toInt64(" + strconv.FormatInt(keys[len(keys)-1].Start, 10) + "), 'UTC')" +
		" AND (trace_id, span_id) IN (")
	for i, k := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "('%x','%x')", k.TraceID, k.SpanID)
	}
	b.WriteByte(')')
	return b.String()
}

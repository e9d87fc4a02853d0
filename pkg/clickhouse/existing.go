package clickhouse

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

const (
	// lookupKeys bounds one query, at the number of rows in a full block. The keys are
	// sent as an external table of some 5 MB beside the SQL.
	lookupKeys = 100_000
	// lookupSpan bounds the time range of one query. The table is sorted by hour first,
	// so keys of two hours are in two places.
	lookupSpan = time.Hour
	// keysTable is the name of the external table with the keys of a query.
	keysTable = "wanted"
)

// Existing returns the subset of keys that is stored in the table. It queries by the
// primary key, once for each hour that the keys cover: first the given shard and, with
// anyShard, the others for the keys still missing, because rows stored before a shard was
// added stay where they are.
//
// On a Replicated table the replica first fetches the parts of its peers, so it finds
// what another replica acknowledged.
func (d *DB) Existing(ctx context.Context, shard int, anyShard bool, table *columns.Table, keys []signal.Key) (map[signal.Key]struct{}, error) {
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, func(a, b signal.Key) int {
		return cmp.Or(cmp.Compare(a.Time, b.Time), bytes.Compare(a.ID[:], b.ID[:]))
	})
	// The response may contain other rows, too, so found is intersected with the keys
	// below.
	found := make(map[signal.Key]struct{})
	for rest := sorted; len(rest) > 0; {
		n := chunk(rest)
		missing := rest[:n]
		// The first query loads the number of shards.
		for i := 0; len(missing) > 0 && (i == 0 || anyShard && i < d.shards.count()); i++ {
			if addr, err := d.ask(ctx, nearest(shard, i), table, missing, found); err != nil {
				return nil, fmt.Errorf("look up %d keys in %s.%s at %s: %w", len(missing), d.cfg.Database, table.Name, addr, readable(err))
			}
			missing = without(missing, found)
		}
		rest = rest[n:]
	}
	if len(found) == 0 {
		return found, nil
	}
	stored := make(map[signal.Key]struct{}, len(found))
	for _, k := range sorted {
		if _, ok := found[k]; ok {
			stored[k] = struct{}{}
		}
	}
	return stored, nil
}

// chunk returns how many of the keys, sorted by time, one query covers.
func chunk(sorted []signal.Key) int {
	limit := min(len(sorted), lookupKeys)
	end := sorted[0].Time + int64(lookupSpan)
	for n := 1; n < limit; n++ {
		if sorted[n].Time >= end {
			return n
		}
	}
	return limit
}

// without returns the keys that are not found. It does not change keys.
func without(keys []signal.Key, found map[signal.Key]struct{}) []signal.Key {
	if len(found) == 0 {
		return keys
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k signal.Key) bool {
		_, ok := found[k]
		return ok
	})
}

// nearest returns the i-th shard to ask: own first, then all others.
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

// ask adds the keys that a shard has to found.
func (d *DB) ask(ctx context.Context, shard int, table *columns.Table, keys []signal.Key, found map[signal.Key]struct{}) (addr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	return d.shards.run(ctx, shard, func(ctx context.Context, c *conn) error {
		if err := d.catchUp(ctx, c.client, table.Name); err != nil {
			return err
		}
		wanted := table.Lookup.Wanted(keys)
		results, each := table.Lookup.Found()
		return c.client.Do(ctx, ch.Query{
			Body:          lookupSQL(d.cfg.Database, table, wanted, keys),
			Settings:      lookupSettings(),
			ExternalTable: keysTable,
			ExternalData:  wanted,
			Result:        results,
			OnResult: func(context.Context, proto.Block) error {
				return each(func(k signal.Key) { found[k] = struct{}{} })
			},
		})
	})
}

// lookupSettings keep a response complete, whatever the user's profile: a row that is
// missing from it would be stored again.
func lookupSettings() []ch.Setting {
	settings := []ch.Setting{ch.SettingInt("limit", 0), ch.SettingInt("offset", 0), ch.SettingInt("use_query_cache", 0)}
	for _, mode := range []string{"read_overflow_mode", "result_overflow_mode", "timeout_overflow_mode", "set_overflow_mode", "transfer_overflow_mode"} {
		settings = append(settings, ch.Setting{Key: mode, Value: "throw", Important: true})
	}
	return settings
}

// catchUp makes a replica fetch the parts that its shard has at this time.
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

// lookupSQL returns the query for keys, which are sorted by time.
func lookupSQL(database string, table *columns.Table, wanted proto.Input, keys []signal.Key) string {
	names := make([]string, len(wanted))
	for i, c := range wanted {
		names[i] = c.Name
	}
	look := &table.Lookup
	return "SELECT " + look.Select + " FROM " + database + "." + table.Name +
		" WHERE " + betweenSQL(look.Time, keys[0].Time, keys[len(keys)-1].Time) + " AND (" + strings.Join(names, ", ") + ") IN " + keysTable
}

// betweenSQL restricts a time column to nanoseconds since 1970, bounds included, in a
// form that uses the primary key.
func betweenSQL(column string, first, last int64) string {
	return fmt.Sprintf("%[1]s >= fromUnixTimestamp64Nano(toInt64(%[2]d), 'UTC') AND %[1]s <= fromUnixTimestamp64Nano(toInt64(%[3]d), 'UTC')", column, first, last)
}

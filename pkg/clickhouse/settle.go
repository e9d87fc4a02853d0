package clickhouse

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// QueryOf returns the Guard.Query of an insert with rows of these partitions of a topic, in
// ascending order: "topic/3" for one, "topic/1,3-5" for several.
func QueryOf(topic string, partitions ...int) string {
	var b strings.Builder
	b.WriteString(topic)
	separator := byte('/')
	for i := 0; i < len(partitions); {
		last := i
		for last+1 < len(partitions) && partitions[last+1] == partitions[last]+1 {
			last++
		}
		b.WriteByte(separator)
		separator = ','
		b.WriteString(strconv.Itoa(partitions[i]))
		if last > i {
			b.WriteString("-" + strconv.Itoa(partitions[last]))
		}
		i = last + 1
	}
	return b.String()
}

// Covers reports whether query, a Guard.Query, is of an insert with rows of what one names:
// they are equal, or one is a partition among those of query.
func Covers(query, one string) bool {
	if query == one {
		return true
	}
	topic, number, ok := cutLast(one)
	partition, err := strconv.Atoi(number)
	if !ok || err != nil || partition < 0 {
		return false
	}
	of, list, ok := cutLast(query)
	if !ok || of != topic {
		return false
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, several := strings.Cut(part, "-")
		if !several {
			last = first
		}
		from, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		to, err := strconv.Atoi(last)
		if err == nil && from <= partition && partition <= to {
			return true
		}
	}
	return false
}

// cutLast cuts s at its last slash.
func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// Settle ends the inserts at the shard whose Guard.Query covers query, see Covers, and returns
// when none runs. After that, what they have stored can be looked up, and they store nothing
// more. Settle skips a replica that it cannot reach as long as it reaches another one; the
// token still covers an insert there that is repeated as it was.
func (i *Inserter) Settle(ctx context.Context, shard int, query string) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	err := i.shards.runAll(ctx, shard, func(ctx context.Context, c *conn) error { return settle(ctx, c.client, i.database, query) })
	if err != nil {
		return fmt.Errorf("end inserts of %s: %w", query, err)
	}
	return nil
}

// settlePause is the interval between checks for running queries. A query that ClickHouse is
// executing ends within milliseconds; one that waits for rows ends with receiveTimeout.
const settlePause = 50 * time.Millisecond

// settle kills the inserts that cover query at one server and waits for their end. It does not
// use KILL QUERY ... SYNC, which does not return while an insert waits for its rows.
func settle(ctx context.Context, client *ch.Client, database, query string) error {
	for first := true; ; first = false {
		ids, err := runningInserts(ctx, client, database, query)
		if err != nil || len(ids) == 0 {
			return err
		}
		if first {
			for n := range ids {
				ids[n] = quote(ids[n])
			}
			kill := "KILL QUERY WHERE query_id IN (" + strings.Join(ids, ", ") + ") ASYNC"
			if err := client.Do(ctx, ch.Query{Body: kill, Result: new(proto.Results).Auto()}); err != nil {
				return err
			}
		}
		if retry.Sleep(ctx, settlePause) != nil {
			return fmt.Errorf("%d of them still run: %w", len(ids), context.Cause(ctx))
		}
	}
}

// runningInserts returns the ids of the inserts of a database that run and cover query.
func runningInserts(ctx context.Context, client *ch.Client, database, query string) ([]string, error) {
	before, _, _ := cutLast(query)
	var running proto.ColStr
	var ids []string
	err := client.Do(ctx, ch.Query{
		Body:   "SELECT query_id FROM system.processes WHERE startsWith(query_id, " + quote(owner(database, before)) + ")",
		Result: proto.Results{{Name: "query_id", Data: &running}},
		OnResult: func(context.Context, proto.Block) error {
			for n := range running.Rows() {
				id := running.Row(n)
				of, _, ok := strings.Cut(strings.TrimPrefix(id, owner(database, "")), queryIDSeparator)
				if ok && Covers(of, query) {
					ids = append(ids, id)
				}
			}
			return nil
		},
	})
	slices.Sort(ids)
	return ids, err
}

// owner separates the inserts of a Guard.Query from those of other installations on the same
// servers.
func owner(database, query string) string { return database + "/" + query }

// queryIDSeparator separates Guard.Query from the random part of a query id: ClickHouse refuses
// a second query with the id of a running one.
const queryIDSeparator = "#"

// queryID returns an id for an insert; empty lets ClickHouse choose.
func queryID(database, query string) string {
	if query == "" {
		return ""
	}
	return owner(database, query) + queryIDSeparator + rand.Text()
}

// quote returns s as a string literal.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

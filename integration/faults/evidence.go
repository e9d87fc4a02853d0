package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/metaflowys/metaflow-server/schema"
)

// keepRecords writes down where in Kafka the requests are that are lost or stored twice, and where
// in ClickHouse.
func (s *site) keepRecords(ctx context.Context, l *ledger, differences []difference) {
	if len(differences) == 0 {
		return
	}
	const most = 50 // more of one accident show nothing new
	differences = differences[:min(len(differences), most)]
	var b strings.Builder
	for _, d := range differences {
		fmt.Fprintln(&b, d)
	}
	s.records(ctx, &b, l, differences)
	s.parts(ctx, &b, l, differences)
	_ = os.WriteFile(filepath.Join(s.dir, l.signal+"-differences.txt"), []byte(b.String()), 0o600)
}

// records reads the whole topic, and lists the records that have items of these requests.
func (s *site) records(ctx context.Context, b *strings.Builder, l *ledger, differences []difference) {
	topic := schema.TopicSpans
	if l == s.load.flows {
		topic = schema.TopicFlows
	}
	ends, err := s.kafka.ends(ctx, topic)
	if err != nil {
		fmt.Fprintln(b, err)
		return
	}
	from := make(map[int32]kgo.Offset)
	for p := range ends {
		from[p] = kgo.NewOffset().AtStart()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.direct...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	if err != nil {
		fmt.Fprintln(b, err)
		return
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for p, end := range ends {
		if end == 0 {
			delete(ends, p)
		}
	}
	for len(ends) > 0 && ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(rec *kgo.Record) {
			for _, d := range differences {
				number := binary.BigEndian.AppendUint64(nil, uint64(d.number))
				if !bytes.Contains(rec.Value, number) {
					continue
				}
				var headers []string
				for _, h := range rec.Headers {
					headers = append(headers, fmt.Sprintf("%s=%x", h.Key, h.Value))
				}
				fmt.Fprintf(b, "request %d: %s/%d offset %d, leader epoch %d, %s, %d bytes, headers %v\n", d.number, topic, rec.Partition, rec.Offset, rec.LeaderEpoch,
					rec.Timestamp.Format(time.StampMilli), len(rec.Value), headers)
			}
			if rec.Offset >= ends[rec.Partition]-1 {
				delete(ends, rec.Partition)
			}
		})
	}
}

// parts lists the parts of the table that hold rows of these requests.
func (s *site) parts(ctx context.Context, b *strings.Builder, l *ledger, differences []difference) {
	query := `SELECT _part, count(), uniqExact(span_id) FROM metaflow.spans_local WHERE bitShiftRight(reinterpretAsUInt64(reverse(unhex(span_id))), 12) = %d GROUP BY _part`
	if l == s.load.flows {
		query = `SELECT _part, count(), uniqExact(connection) FROM metaflow.flows_local WHERE agent_id LIKE 'faults-%%' AND bitShiftRight(connection, 12) = %d GROUP BY _part`
	}
	for _, d := range differences {
		rows, err := s.store.conn.Query(ctx, fmt.Sprintf(query, d.number))
		if err != nil {
			fmt.Fprintln(b, err)
			return
		}
		for rows.Next() {
			var part string
			var n counts
			if rows.Scan(&part, &n.rows, &n.ids) == nil {
				fmt.Fprintf(b, "request %d: part %s has %d rows of %d items\n", d.number, part, n.rows, n.ids)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			fmt.Fprintln(b, err)
		}
	}
}

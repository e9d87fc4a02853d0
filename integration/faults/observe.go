package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// get returns the status and body of an HTTP GET.
func get(ctx context.Context, url string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// countSpans and countFlows count what is stored of each request from a number on. Both
// tables find these by their order.
const (
	countSpans = `SELECT bitShiftRight(reinterpretAsUInt64(reverse(unhex(span_id))), 12) AS request, count(), uniqExact(span_id)
FROM metaflow.spans_local WHERE trace_id >= lower(leftPad(hex(toUInt64(%d)), 16, '0')) GROUP BY request`
	countFlows = `SELECT bitShiftRight(connection, 12) AS request, count(), uniqExact(connection)
FROM metaflow.flows_local WHERE agent_id LIKE 'faults-%%' AND ip >= toIPv6('fd00::%s') GROUP BY request`
)

// stored counts what is stored of the ledger's requests from a number on.
func (s *site) stored(ctx context.Context, l *ledger, from int) (map[uint64]counts, error) {
	query := fmt.Sprintf(countSpans, from)
	if l == s.load.flows {
		query = fmt.Sprintf(countFlows, fmt.Sprintf("%x:%x:%x:%x", uint16(from>>48), uint16(from>>32), uint16(from>>16), uint16(from)))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	rows, err := s.store.conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	found := make(map[uint64]counts)
	for rows.Next() {
		var number uint64
		var n counts
		if err := rows.Scan(&number, &n.rows, &n.ids); err != nil {
			return nil, err
		}
		found[number] = n
	}
	return found, rows.Err()
}

// look updates what the ledgers have seen in the tables. Only twofold rows are an error:
// ClickHouse may be down.
func (s *site) look(ctx context.Context) error {
	for _, l := range []*ledger{s.load.spans, s.load.flows} {
		found, err := s.stored(ctx, l, l.from())
		if err != nil {
			s.event("look: %v", err)
			return nil
		}
		if err := l.see(found); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until all that was acknowledged before since is stored, and something of
// each sender that was sent after it. It returns an error if that takes too long or
// something is stored twice.
func (s *site) settle(ctx context.Context, since time.Time, within time.Duration) error {
	deadline := since.Add(within)
	for {
		if err := s.look(ctx); err != nil {
			return err
		}
		err := s.load.spans.settled(since, s.load.spanSenders)
		if err == nil {
			err = s.load.flows.settled(since, s.load.flowSenders)
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not settled within %s: %w", within, err)
		}
		if retry.Sleep(ctx, 250*time.Millisecond) != nil {
			return ctx.Err()
		}
	}
}

// drain waits until all that was acknowledged is stored, while nothing is sent.
func (s *site) drain(ctx context.Context, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		if err := s.look(ctx); err != nil {
			return err
		}
		err := s.load.spans.drained()
		if err == nil {
			err = s.load.flows.drained()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not stored within %s: %w", within, err)
		}
		if retry.Sleep(ctx, 250*time.Millisecond) != nil {
			return ctx.Err()
		}
	}
}

// usage is the most that a program was seen to use.
type usage struct{ memory, goroutines, files float64 }

// bounds of what a program may use. Memory: the 256 MiB of requests in flight, the writers' 192, twice
// that for the collector of garbage, and 100 for the rest. Goroutines and files: some for each
// connection; a leak of a few for each fault exceeds them in a run of 200.
var bounds = usage{memory: 1000 << 20, goroutines: 1500, files: 400}

// watch asks each program for what it uses until ctx ends.
func (s *site) watch(ctx context.Context) map[string]usage {
	most := make(map[string]usage)
	for retry.Sleep(ctx, 3*time.Second) == nil {
		programs := make(map[string]string)
		for _, srv := range s.servers {
			programs[srv.name] = srv.http
		}
		for _, a := range s.agents {
			programs[a.name] = a.http
		}
		for name, addr := range programs {
			_, text, err := get(ctx, "http://"+addr+"/metrics")
			if err != nil {
				continue
			}
			u := most[name]
			for metric, value := range map[string]*float64{
				"process_resident_memory_bytes": &u.memory, "go_goroutines": &u.goroutines, "process_open_fds": &u.files,
			} {
				if sum, err := prom.Sum(text, metric, ""); err == nil {
					*value = max(*value, sum)
				}
			}
			most[name] = u
		}
	}
	return maps.Clone(most)
}

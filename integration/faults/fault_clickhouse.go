package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// planSlowStore makes ClickHouse slow: it runs for a tenth of the time, or every chunk
// takes a while on its way.
func planSlowStore(s *site, r *rand.Rand) (fault, bool) {
	d := between(r, 3*time.Second, 9*time.Second)
	if r.IntN(2) == 0 {
		delay := between(r, 50*time.Millisecond, 500*time.Millisecond)
		return fault{
			what:  fmt.Sprintf("every chunk to and from ClickHouse takes %s for %s", delay.Round(time.Millisecond), d.Round(time.Millisecond)),
			takes: []string{"slow links"},
			run: func(ctx context.Context) error {
				for _, l := range s.toStore {
					l.setDelay(delay)
				}
				_ = retry.Sleep(ctx, d)
				for _, l := range s.toStore {
					l.setDelay(0)
				}
				return nil
			},
		}, true
	}
	return fault{
		what: fmt.Sprintf("ClickHouse runs for a tenth of the time for %s", d.Round(time.Millisecond)), takes: []string{"clickhouse"},
		run: func(ctx context.Context) error {
			for end := time.Now().Add(d); time.Now().Before(end); {
				s.store.pause()
				_ = retry.Sleep(ctx, 270*time.Millisecond)
				s.store.resume()
				_ = retry.Sleep(ctx, 30*time.Millisecond)
			}
			return nil
		},
	}, true
}

// tables draws one of the two tables.
func tables(r *rand.Rand) string {
	if r.IntN(3) == 0 {
		return "flows_local"
	}
	return "spans_local"
}

// altered executes a statement, and another one after a while. Both are executed although other faults
// are under way.
func (s *site) altered(what string, d time.Duration, before, after []string, takes ...string) fault {
	return fault{
		what: fmt.Sprintf("%s for %s", what, d.Round(time.Millisecond)), takes: takes,
		run: func(ctx context.Context) error {
			if err := s.store.exec(ctx, before...); err != nil {
				return err
			}
			_ = retry.Sleep(ctx, d)
			return s.store.exec(ctx, after...)
		},
	}
}

func planTooManyParts(s *site, r *rand.Rand) (fault, bool) {
	t := tables(r)
	alter := "ALTER TABLE metaflow." + t
	return s.altered(t+" takes no more parts", between(r, time.Second, 8*time.Second),
		[]string{alter + " MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 1"},
		[]string{alter + " RESET SETTING parts_to_delay_insert, parts_to_throw_insert"}, t), true
}

// planMemoryLimit restarts ClickHouse with less memory than an INSERT needs.
func planMemoryLimit(s *site, r *rand.Rand) (fault, bool) {
	d := between(r, 2*time.Second, 8*time.Second)
	return fault{
		what: fmt.Sprintf("ClickHouse has hardly any memory for %s", d.Round(time.Millisecond)), takes: []string{"clickhouse"},
		run: func(ctx context.Context) error {
			if err := s.store.limit(ctx, littleMemory); err != nil {
				return err
			}
			_ = retry.Sleep(ctx, d)
			return s.store.limit(ctx, normalMemory)
		},
	}, true
}

// littleMemory is less than the engine takes when it is idle, so every INSERT fails.
const littleMemory = 150 << 20

// planReadOnly makes a table answer that it is read-only.
func planReadOnly(s *site, r *rand.Rand) (fault, bool) {
	t := tables(r)
	alter := "ALTER TABLE metaflow." + t
	return s.altered(t+" is read-only", between(r, time.Second, 8*time.Second),
		[]string{alter + " MODIFY SETTING table_readonly = 1"},
		[]string{alter + " MODIFY SETTING table_readonly = 0"}, t), true
}

func planTableAway(s *site, r *rand.Rand) (fault, bool) {
	t := tables(r)
	return s.altered(t+" is renamed", between(r, time.Second, 8*time.Second),
		[]string{"RENAME TABLE metaflow." + t + " TO metaflow." + t + "_away"},
		[]string{"RENAME TABLE metaflow." + t + "_away TO metaflow." + t}, t), true
}

// planViewFails attaches a view to a table that fails after the rows are stored.
func planViewFails(s *site, r *rand.Rand) (fault, bool) {
	t := tables(r)
	view := "metaflow.faults_" + t
	return s.altered("a view on "+t+" fails", between(r, time.Second, 8*time.Second),
		[]string{
			"CREATE TABLE IF NOT EXISTS metaflow.faults (n UInt8) ENGINE = MergeTree ORDER BY n",
			"CREATE MATERIALIZED VIEW IF NOT EXISTS " + view + " TO metaflow.faults AS SELECT throwIf(1, 'faults') AS n FROM metaflow." + t,
		},
		[]string{"DROP VIEW IF EXISTS " + view}, t), true
}

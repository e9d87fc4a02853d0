package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Several replicas may change the same table at once. A Replicated table accepts one
// change and refuses the others for a moment.
const (
	retentionAttempts = 5
	retentionPause    = 200 * time.Millisecond
)

// retain changes the rule that deletes rows where it differs from the configured
// retention. All other rules of a table stay.
func (d *DB) retain(ctx context.Context, p migrations.Params) error {
	for _, t := range []struct {
		table, column string
		keep          time.Duration
	}{
		{"spans_local", "start_time", p.SpansRetention},
		{"service_addresses_local", "hour", p.SpansRetention},
		{"flows_local", "time", p.FlowsRetention},
		{"flow_addresses_local", "hour", p.FlowsRetention},
		{"pods_local", "seen", p.PodsRetention()},
		{"services_local", "seen", p.PodsRetention()},
	} {
		if err := d.retainInTime(ctx, p, t.table, migrations.TTL(t.column, t.keep)); err != nil {
			return err
		}
	}
	return nil
}

func (d *DB) retainInTime(ctx context.Context, p migrations.Params, table, want string) error {
	var err error
	for range retentionAttempts {
		if err = d.retainTable(ctx, p, table, want); err == nil {
			return nil
		}
		if retry.Sleep(ctx, retentionPause) != nil {
			return err
		}
	}
	return err
}

func (d *DB) retainTable(ctx context.Context, p migrations.Params, table, want string) error {
	have, err := d.currentTTLs(ctx, table)
	if err != nil {
		return err
	}
	wanted := make([]string, 0, len(have))
	for _, ttl := range have {
		wanted = append(wanted, withRetention(ttl, want))
	}
	if slices.Equal(have, wanted) && len(have) == 1 {
		return nil
	}
	from := strings.Join(have, "; ")
	slices.Sort(wanted)
	if wanted = slices.Compact(wanted); len(wanted) > 1 {
		d.log.Warn("nodes have different TTL rules; the retention stays as it is", slog.String("table", table), slog.String("found", from), slog.String("wanted", want))
		return nil
	}
	if err := d.exec(ctx, alterTTL(p, table, wanted[0])); err != nil {
		return fmt.Errorf("change retention of %s.%s: %w", p.Database, table, err)
	}
	d.log.Info("changed retention", slog.String("table", table), slog.String("from", from), slog.String("to", wanted[0]))
	return nil
}

// alterTTL does not rewrite stored rows: ClickHouse drops a part when all of its rows
// have expired, and computes that from the new expression as parts merge.
func alterTTL(p migrations.Params, table, ttl string) string {
	alter := "ALTER TABLE " + p.Database + "." + table + p.OnCluster()
	if ttl == "" {
		return alter + " REMOVE TTL"
	}
	return alter + " MODIFY TTL " + ttl + " SETTINGS materialize_ttl_after_modify = 0"
}

var ttlInEngine = regexp.MustCompile(`(?s) TTL (.*?)(?: SETTINGS .*)?$`)

// currentTTLs returns the table's TTL expressions as ClickHouse shows them, "" for none.
// There is one, unless nodes of the cluster differ because a change reached only some of
// them. Nodes that are down are skipped.
func (d *DB) currentTTLs(ctx context.Context, table string) ([]string, error) {
	engines, err := d.engines(ctx, table)
	if err != nil {
		return nil, err
	}
	ttls := make([]string, 0, len(engines))
	for _, engine := range engines {
		ttl := ""
		if match := ttlInEngine.FindStringSubmatch(engine); match != nil {
			ttl = strings.TrimSpace(match[1])
		}
		ttls = append(ttls, ttl)
	}
	slices.Sort(ttls)
	return slices.Compact(ttls), nil
}

// engines returns the table's definition on each node that is up: its engine with keys,
// TTL and settings, as ClickHouse shows them.
func (d *DB) engines(ctx context.Context, table string) ([]string, error) {
	var engines []string
	err := d.conn.QueryRow(ctx, "SELECT groupArray(engine_full) FROM "+d.system("tables")+
		" WHERE database = $1 AND name = $2"+d.skipUnavailable(), d.cfg.Database, table).Scan(&engines)
	if err != nil {
		return nil, fmt.Errorf("read the definition of %s.%s: %w", d.cfg.Database, table, readable(err))
	}
	if len(engines) == 0 {
		return nil, fmt.Errorf("read the definition of %s.%s: there is no such table", d.cfg.Database, table)
	}
	return engines, nil
}

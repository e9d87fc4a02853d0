package clickhouse

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/migrations"
)

// retentionAttempts is for several replicas that change the same table at
// once: a Replicated table lets one of them and refuses the others for a moment.
const (
	retentionAttempts = 5
	retentionPause    = 200 * time.Millisecond
)

// retain changes the TTL of the tables where it differs from the configured one.
func (d *DB) retain(ctx context.Context, p migrations.Params) error {
	want := migrations.TTL("start_time", p.SpansRetention)
	var err error
	for range retentionAttempts {
		if err = d.retainTable(ctx, p, "spans_local", want); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retentionPause):
		}
	}
	return err
}

func (d *DB) retainTable(ctx context.Context, p migrations.Params, table, want string) error {
	have, err := d.currentTTL(ctx, table)
	if err != nil || have == want {
		return err
	}
	if err := d.exec(ctx, alterTTL(p, table, want)); err != nil {
		return fmt.Errorf("change retention of %s.%s: %w", p.Database, table, err)
	}
	d.log.Info("changed retention", "table", table, "from", have, "to", want)
	return nil
}

// alterTTL leaves rows already stored as they are: whole parts go when all of
// their rows have ended, and ClickHouse computes that from the new expression
// as parts merge.
func alterTTL(p migrations.Params, table, ttl string) string {
	alter := "ALTER TABLE " + p.Database + "." + table + p.OnCluster()
	if ttl == "" {
		return alter + " REMOVE TTL"
	}
	return alter + " MODIFY TTL " + ttl + " SETTINGS materialize_ttl_after_modify = 0"
}

var ttlInEngine = regexp.MustCompile(`(?s) TTL (.*?)(?: SETTINGS .*)?$`)

// currentTTL returns the table's TTL expression as ClickHouse shows it, or "".
func (d *DB) currentTTL(ctx context.Context, table string) (string, error) {
	var engine string
	err := d.conn.QueryRow(ctx, "SELECT engine_full FROM system.tables WHERE database = $1 AND name = $2",
		d.cfg.Database, table).Scan(&engine)
	if err != nil {
		return "", fmt.Errorf("read retention of %s.%s: %w", d.cfg.Database, table, readable(err))
	}
	match := ttlInEngine.FindStringSubmatch(engine)
	if match == nil {
		return "", nil
	}
	return strings.TrimSpace(match[1]), nil
}

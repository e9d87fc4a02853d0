package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/columns"
)

// tableSetting is a setting and its minimum value.
type tableSetting struct {
	name  string
	least int64
}

// needed returns the settings that a table with the given engine needs for so many
// partitions.
func (d *DB) needed(engine string, partitions int) []tableSetting {
	window := "non_replicated_deduplication_window"
	if strings.HasPrefix(engine, "Replicated") {
		window = "replicated_deduplication_window"
	}
	settings := []tableSetting{{window, migrations.DeduplicationWindow(partitions)}}
	if d.cfg.SyncInserts {
		settings = append(settings, tableSetting{"fsync_after_insert", 1}, tableSetting{"fsync_part_directory", 1})
	}
	return settings
}

// ErrTableSettings means that tables lack settings. The error text has the statements
// that set them.
var ErrTableSettings = errors.New("tables lack settings that a writer relies on")

// CheckTableSettings returns ErrTableSettings if a table that writers of so many
// partitions insert into lacks a setting. It changes nothing.
func (d *DB) CheckTableSettings(ctx context.Context, partitions int) error {
	alters, err := d.missingSettings(ctx, partitions)
	if err != nil || len(alters) == 0 {
		return err
	}
	return fmt.Errorf("%w; run: %s", ErrTableSettings, strings.Join(alters, "; "))
}

// EnsureTableSettings sets the settings that CheckTableSettings reports. It keeps higher
// values.
func (d *DB) EnsureTableSettings(ctx context.Context, partitions int) error {
	alters, err := d.missingSettings(ctx, partitions)
	if err != nil {
		return err
	}
	for _, alter := range alters {
		if err := d.exec(ctx, alter); err != nil {
			return fmt.Errorf("change table settings: %s: %w", alter, err)
		}
		d.log.Info("changed table settings", slog.String("statement", alter))
	}
	return nil
}

// missingSettings returns the statements that set the missing settings.
func (d *DB) missingSettings(ctx context.Context, partitions int) (alters []string, err error) {
	p := d.params(Retention{})
	for _, table := range []string{columns.TableSpans, columns.TableFlows} {
		engines, err := d.engines(ctx, table)
		if err != nil {
			return nil, err
		}
		var set []string
		for _, s := range d.needed(engines[0], partitions) {
			for _, engine := range engines { // nodes may differ
				if have, ok := settingIn(engine, s.name); !ok || have < s.least {
					set = append(set, fmt.Sprintf("%s = %d", s.name, s.least))
					break
				}
			}
		}
		if len(set) > 0 {
			alters = append(alters, "ALTER TABLE "+p.Database+"."+table+p.OnCluster()+" MODIFY SETTING "+strings.Join(set, ", "))
		}
	}
	return alters, nil
}

// settingIn returns the number that a table's definition, as ClickHouse shows it, gives a
// setting.
func settingIn(engine, name string) (int64, bool) {
	match := regexp.MustCompile(`\b` + name + ` = (\d+)\b`).FindStringSubmatch(engine)
	if match == nil {
		return 0, false
	}
	n, err := strconv.ParseInt(match[1], 10, 64)
	return n, err == nil
}

package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// replaceViews brings views into their form where any node has another one, or
// none. It runs nothing without need: a statement for all nodes fails while one
// of them is down, and a server must be able to start then.
func (d *DB) replaceViews(ctx context.Context, views []migrations.View) error {
	current, err := d.viewsInForm(ctx, views)
	if err != nil {
		return err
	}
	for _, v := range views {
		if current[v.Name] {
			continue
		}
		if err := d.replaceView(ctx, v); err != nil {
			return err
		}
		d.log.Info("replaced view", slog.String("view", v.Name))
	}
	return nil
}

// Several servers may replace a view at once. ClickHouse then refuses to comment on the
// columns of one that another server has replaced, or finds its files gone or renamed, each
// with another code. So whatever it refuses is tried again for two seconds.
const (
	replaceAttempts = 20
	replacePause    = 100 * time.Millisecond
)

func (d *DB) replaceView(ctx context.Context, v migrations.View) error {
	for attempt := 1; ; attempt++ {
		err := d.execAll(ctx, "replace view "+d.cfg.Database+"."+v.Name, v.Replace)
		if _, _, refused := exception(err); !refused {
			return err
		}
		if attempt == replaceAttempts || retry.Sleep(ctx, replacePause) != nil {
			return err
		}
		if current, unread := d.viewsInForm(ctx, []migrations.View{v}); unread == nil && current[v.Name] {
			return nil
		}
	}
}

// viewsInForm returns the views that all nodes have in their form, by name.
// Nodes that are down are not asked.
func (d *DB) viewsInForm(ctx context.Context, views []migrations.View) (map[string]bool, error) {
	rows, err := d.conn.Query(ctx, "SELECT name, comment FROM "+d.system("tables")+" WHERE database = $1"+d.skipUnavailable(), d.cfg.Database)
	if err != nil {
		return nil, fmt.Errorf("read views of %s: %w", d.cfg.Database, readable(err))
	}
	defer func() { _ = rows.Close() }() // Err tells the same
	type form struct{ view, comment string }
	nodes := make(map[form]int)
	all := 0
	for rows.Next() {
		var f form
		if err := rows.Scan(&f.view, &f.comment); err != nil {
			return nil, fmt.Errorf("read views of %s: %w", d.cfg.Database, err)
		}
		if f.view == recordTable { // every node has it
			all++
		}
		nodes[f]++
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read views of %s: %w", d.cfg.Database, readable(err))
	}
	current := make(map[string]bool, len(views))
	for _, v := range views {
		current[v.Name] = all > 0 && nodes[form{v.Name, v.Form}] == all
	}
	return current, nil
}

// dropViews removes the views that are in views and not in keep, the last one
// first, because views read those before them.
func (d *DB) dropViews(ctx context.Context, views, keep []migrations.View) error {
	kept := make(map[string]bool, len(keep))
	for _, v := range keep {
		kept[v.Name] = true
	}
	for i := len(views) - 1; i >= 0; i-- {
		if v := views[i]; !kept[v.Name] {
			if err := d.execAll(ctx, "drop view "+d.cfg.Database+"."+v.Name, []string{v.Drop}); err != nil {
				return err
			}
		}
	}
	return nil
}

// system is a system table of every node of the cluster, or of the one node.
func (d *DB) system(table string) string {
	if d.cfg.Cluster == "" {
		return "system." + table
	}
	return "clusterAllReplicas('" + d.cfg.Cluster + "', 'system', '" + table + "')"
}

// skipUnavailable ends a question to a system table of every node.
func (d *DB) skipUnavailable() string { return " SETTINGS skip_unavailable_shards = 1" }

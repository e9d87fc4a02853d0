package writer

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Finder finds rows by their keys. *clickhouse.DB is one.
type Finder interface {
	// Existing returns those of keys that are stored in the table: at the shard,
	// or with anyShard at any, and then all shards must answer.
	Existing(ctx context.Context, shard int, anyShard bool, table *columns.Table, keys []signal.Key) (map[signal.Key]struct{}, error)
}

// source says which items of r to append: those that lie in the window of its
// first receipt and that skip, when it is not nil, does not leave out.
func (w *Writer) source(r *delivery.Record, skip func(index int, key signal.Key) bool) columns.Source {
	return columns.Source{Agent: r.Meta.Agent, Window: w.accept(r), Skip: skip}
}

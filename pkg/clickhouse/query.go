package clickhouse

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Query runs a query of the caller's, with $1, $2 and so on for args. The caller closes
// the rows. Errors are the driver's, in readable form.
func (d *DB) Query(ctx context.Context, query string, args ...any) (driver.Rows, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	rows, err := d.conn.Query(ctx, query, args...)
	if err != nil {
		cancel()
		return nil, readable(err)
	}
	return &boundedRows{Rows: rows, cancel: cancel}, nil
}

// boundedRows releases the query's timeout with the rows.
type boundedRows struct {
	driver.Rows
	cancel context.CancelFunc
}

func (r *boundedRows) Close() error {
	defer r.cancel()
	return r.Rows.Close()
}

// DeleteSpansOfDay deletes the spans of a service that started on day, in UTC, on every
// node. It is a lightweight DELETE in one partition: ClickHouse reads the column of
// services of that day and writes a mask for the parts that have such spans.
func (d *DB) DeleteSpansOfDay(ctx context.Context, service string, day time.Time) error {
	p := d.params(Retention{})
	statement := fmt.Sprintf("DELETE FROM %s.spans_local%s IN PARTITION '%s' WHERE service_name = %s",
		d.cfg.Database, p.OnCluster(), day.UTC().Format(time.DateOnly), quote(service))
	if err := d.exec(ctx, statement); err != nil {
		return fmt.Errorf("delete spans of %s on %s: %w", service, day.UTC().Format(time.DateOnly), err)
	}
	return nil
}

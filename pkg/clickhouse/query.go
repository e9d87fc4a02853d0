package clickhouse

import (
	"context"
	"fmt"
	"time"
)

// Query runs a query of the caller's, with $1, $2 and so on for args, and calls row for
// each row of the result. scan is valid during that call. An error of row ends the query.
func (d *DB) Query(ctx context.Context, query string, row func(scan func(...any) error) error, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	rows, err := d.conn.Query(ctx, query, args...)
	if err != nil {
		return readable(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return readable(rows.Err())
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

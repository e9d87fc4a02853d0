package verify

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

// Store reads what ClickHouse has.
type Store interface {
	// Lookup returns every row of the traces that started between from and to.
	Lookup(ctx context.Context, traceIDs []string, from, to time.Time) ([]Span, error)
	// Clean deletes the spans of ServiceName that started on a day, which is over.
	Clean(ctx context.Context, day time.Time) error
}

// Database is the part of clickhouse.DB that a Store needs.
type Database interface {
	Query(ctx context.Context, query string, row func(scan func(...any) error) error, args ...any) error
	DeleteSpansOfDay(ctx context.Context, service string, day time.Time) error
}

// NewStore returns a Store over the view of spans in a database.
func NewStore(db Database, database string) Store { return &store{db: db, database: database} }

type store struct {
	db       Database
	database string
}

func (s *store) Lookup(ctx context.Context, traceIDs []string, from, to time.Time) ([]Span, error) {
	var spans []Span
	// The limit is above what a hundred copies of each span would be.
	query := fmt.Sprintf(`SELECT trace_id, toString(span_id), parent_span_id, toString(name), toString(kind), toString(service_name),
		toUnixTimestamp64Nano(start_time), duration_ns, toString(status_code), CAST(attributes, 'Map(String, String)')
		FROM %s.spans WHERE start_time >= fromUnixTimestamp64Nano($1) AND start_time <= fromUnixTimestamp64Nano($2) AND trace_id IN ($3) LIMIT 200000`, s.database)
	err := s.db.Query(ctx, query, func(scan func(...any) error) error {
		var row Span
		var start, duration int64
		if err := scan(&row.TraceID, &row.SpanID, &row.ParentSpanID, &row.Name, &row.Kind, &row.Service, &start, &duration, &row.Status, &row.Attributes); err != nil {
			return err
		}
		row.Start, row.Duration = time.Unix(0, start).UTC(), time.Duration(duration)
		spans = append(spans, row)
		return nil
	}, from.UnixNano(), to.UnixNano(), traceIDs)
	if err != nil {
		return nil, fmt.Errorf("query spans: %w", err)
	}
	return spans, nil
}

func (s *store) Clean(ctx context.Context, day time.Time) error {
	return s.db.DeleteSpansOfDay(ctx, ServiceName, day)
}

// hostname identifies the sender in the resource of its spans.
func hostname() string {
	name, err := os.Hostname()
	if err != nil || net.ParseIP(name) != nil {
		return "unknown"
	}
	return name
}

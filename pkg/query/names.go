package query

import (
	"context"
	"fmt"
	"time"
)

// lookback is how far back names are collected: the spans of a day name all services but
// those that are asked once a week. Where it has no span, the longest range of a search is
// looked at.
const lookback = 24 * time.Hour

// lookBack reads a list of names.
func lookBack[T any](r *Reader, read func(Range) ([]T, error)) (found []T, err error) {
	for _, back := range []time.Duration{lookback, r.cfg.MaxRange} {
		if found, err = read(Range{Start: r.now().Add(-back)}); err != nil || len(found) > 0 {
			break
		}
	}
	return found, err
}

// Bounds of lists of names, and of the spans that they are taken from.
const (
	maxNames     = 5000
	maxValues    = 500
	sampledSpans = 200_000
)

// Services returns the services of the last day, by name.
func (r *Reader) Services(ctx context.Context) ([]string, error) {
	defer r.observe("services")()
	return lookBack(r, func(in Range) ([]string, error) {
		b := builder{}
		return r.texts(ctx, fmt.Sprintf("SELECT DISTINCT toString(service_name) AS s FROM %s.spans WHERE service_name != ''%s ORDER BY s LIMIT %d",
			r.database, b.within(in), maxNames), &b)
	})
}

// Operation is a name of spans.
type Operation struct{ Name, Kind string }

// Operations returns the names of a service's spans in the last day, the most frequent
// first. An empty kind means all kinds.
func (r *Reader) Operations(ctx context.Context, service, kind string) ([]Operation, error) {
	defer r.observe("operations")()
	return lookBack(r, func(in Range) (found []Operation, err error) {
		b := builder{}
		where := "service_name = " + b.arg(service) + b.within(in)
		if kind != "" {
			where += " AND toString(kind) = " + b.arg(kind)
		}
		query := fmt.Sprintf("SELECT toString(name), toString(kind) FROM %s.spans WHERE %s GROUP BY name, kind ORDER BY count() DESC, name, kind LIMIT %d", r.database, where, maxNames)
		err = r.db.Query(ctx, query, func(scan func(...any) error) error {
			var o Operation
			if err := scan(&o.Name, &o.Kind); err != nil {
				return err
			}
			found = append(found, o)
			return nil
		}, b.args...)
		return found, err
	})
}

// Keys returns the attributes of spans in a range that fulfil a condition, the most frequent
// first. The scope is SpanScope, Resource, Event, Link or Instrument.
func (r *Reader) Keys(ctx context.Context, scope Scope, where Expr, in Range) ([]string, error) {
	defer r.observe("keys")()
	in, err := r.bounded(in)
	if err != nil {
		return nil, err
	}
	keys := map[Scope]string{
		SpanScope: "mapKeys(attributes)", Resource: "mapKeys(resource_attributes)", Instrument: "mapKeys(scope_attributes)",
		Event: "arrayFlatten(arrayMap(m -> mapKeys(m), events.attributes))", Link: "arrayFlatten(arrayMap(m -> mapKeys(m), links.attributes))",
	}[scope]
	c := r.compiler(in)
	condition, err := withoutVerdicts(where).sql(c)
	if err != nil {
		return nil, err
	}
	return r.texts(ctx, fmt.Sprintf("SELECT toString(arrayJoin(keys)) AS key FROM (SELECT %s AS keys FROM %s.spans WHERE (%s) AND notEmpty(keys)%s LIMIT %d) GROUP BY key ORDER BY count() DESC, key LIMIT %d",
		keys, r.database, condition, c.builder.within(in), sampledSpans, maxValues), c.builder)
}

// withoutVerdicts takes the comparisons with network.verdict out of the condition of names and
// values: what they leave is not worth a search.
func withoutVerdicts(where Expr) And {
	rest, _ := split(where)
	return rest
}

// Check returns an error about a condition of names and values, or nil if Keys and Values
// understand it.
func Check(where Expr) error {
	_, err := withoutVerdicts(where).sql(&compiler{builder: &builder{}})
	return err
}

// Values returns the values of a field in a range, the most frequent first, of spans that
// fulfil a condition. Those of a root span are of traces with such a span.
func (r *Reader) Values(ctx context.Context, of Field, where Expr, in Range) ([]string, error) {
	defer r.observe("values")()
	in, err := r.bounded(in)
	if err != nil {
		return nil, err
	}
	rest := withoutVerdicts(where)
	if of.Scope == Intrinsic && (of.Name == FieldRootName || of.Name == FieldRootService) && len(rest) > 0 {
		rest = And{InTrace{rest}}
	}
	c := r.compiler(in)
	value, ok := map[string]string{
		FieldName: "toString(name)", FieldMessage: "status_message", FieldStatus: "toString(status_code)", FieldKind: "toString(kind)",
		FieldScopeName: "toString(scope_name)", FieldScopeVersion: "toString(scope_version)", FieldRootName: "if(parent_span_id = '', toString(name), '')",
		FieldRootService: "if(parent_span_id = '', toString(service_name), '')", FieldEventName: "toString(arrayJoin(events.name))",
	}[of.Name]
	switch {
	case of.Scope == Intrinsic && !ok:
		return nil, nil
	case of == Field{Resource, "service.name"}:
		value = "toString(service_name)"
	case of.Scope == Event:
		value = "toString(arrayJoin(events.attributes)[" + c.arg(of.Name) + "])"
	case of.Scope == Link:
		value = "toString(arrayJoin(links.attributes)[" + c.arg(of.Name) + "])"
	case of.Scope != Intrinsic:
		value = of.value(c)
	}
	condition, err := rest.sql(c)
	if err != nil {
		return nil, err
	}
	return r.texts(ctx, fmt.Sprintf("SELECT value FROM (SELECT %s AS value FROM %s.spans WHERE (%s)%s AND value != '' LIMIT %d) GROUP BY value ORDER BY count() DESC, value LIMIT %d",
		value, r.database, condition, c.builder.within(in), sampledSpans, maxValues), c.builder)
}

func (r *Reader) texts(ctx context.Context, query string, b *builder) (found []string, err error) {
	err = r.db.Query(ctx, query, func(scan func(...any) error) error {
		var s string
		if err := scan(&s); err != nil {
			return err
		}
		found = append(found, s)
		return nil
	}, b.args...)
	return found, err
}

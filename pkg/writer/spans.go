package writer

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// SpanStore finds spans. *clickhouse.DB is one.
type SpanStore interface {
	// ExistingSpans returns those of keys that are stored at the shard, or with anyShard at any.
	ExistingSpans(ctx context.Context, shard int, anyShard bool, keys []clickhouse.SpanKey) (map[clickhouse.SpanKey]struct{}, error)
}

// Spans is the kind of the topic of spans.
func Spans(store SpanStore) Kind { return spans{store} }

type spans struct{ store SpanStore }

func (spans) Signal() string         { return "traces" }
func (spans) Items() string          { return "spans" }
func (spans) NewBlock() Block        { return spanBlock{columns.NewSpans()} }
func (spans) Count(value []byte) int { return traces.Spans(value) }

func (spans) Select(value []byte, keep func(int) bool) ([]byte, error) {
	return traces.Select(value, keep)
}

func (s spans) Existing(ctx context.Context, shard int, anyShard bool, keys []Key) (map[Key]struct{}, error) {
	return existing(ctx, shard, anyShard, keys, s.store.ExistingSpans)
}

// existing looks up keys that are all of one type.
func existing[K comparable](ctx context.Context, shard int, anyShard bool, keys []Key, lookUp func(context.Context, int, bool, []K) (map[K]struct{}, error)) (map[Key]struct{}, error) {
	own := make([]K, 0, len(keys))
	for _, k := range keys {
		own = append(own, k.(K))
	}
	stored, err := lookUp(ctx, shard, anyShard, own)
	if err != nil {
		return nil, err
	}
	found := make(map[Key]struct{}, len(stored))
	for k := range stored {
		found[k] = struct{}{}
	}
	return found, nil
}

type spanBlock struct{ *columns.Spans }

func (b spanBlock) Append(r *delivery.Record, window traces.Window, skip func(int, Key) bool) ([]Refused, error) {
	src := columns.Source{Agent: r.Meta.Agent, Window: window}
	if skip != nil {
		src.Skip = func(index int, head *traces.Head) bool { return skip(index, spanKey(head)) }
	}
	refused, err := b.Spans.Append(r.Value, src)
	var out []Refused
	for _, f := range refused {
		out = append(out, Refused{f.Index, f.Reason.String()})
	}
	return out, err
}

func (b spanBlock) Keys(f func(Key)) { b.Heads(func(head *traces.Head) { f(spanKey(head)) }) }

func spanKey(head *traces.Head) clickhouse.SpanKey {
	return clickhouse.SpanKey{TraceID: [16]byte(head.TraceID), SpanID: [8]byte(head.SpanID), Start: int64(head.Start)}
}

package writer

import (
	"context"
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// FlowStore finds flows. *clickhouse.DB is one.
type FlowStore interface {
	// ExistingFlows returns those of keys that are stored at the shard, or with anyShard at any.
	ExistingFlows(ctx context.Context, shard int, anyShard bool, keys []clickhouse.FlowKey) (map[clickhouse.FlowKey]struct{}, error)
}

// Resolver says who held an address at a time, in nanoseconds since the Unix epoch. It is called for every
// flow, by many goroutines, and never blocks.
type Resolver func(cluster string, address netip.Addr, at uint64) index.Holder

// Flows is the kind of the topic of flows. who is asked for the pods and services at their ends; it may
// be nil.
func Flows(store FlowStore, who Resolver) Kind { return flowRows{store, who} }

type flowRows struct {
	store FlowStore
	who   Resolver
}

func (flowRows) Signal() string         { return "flows" }
func (flowRows) Items() string          { return "flows" }
func (k flowRows) NewBlock() Block      { return flowBlock{columns.NewFlows(), k.who} }
func (flowRows) Count(value []byte) int { return flows.Flows(value) }

func (flowRows) Select(value []byte, keep func(int) bool) ([]byte, error) {
	return flows.Select(value, keep)
}

func (k flowRows) Existing(ctx context.Context, shard int, anyShard bool, keys []Key) (map[Key]struct{}, error) {
	return existing(ctx, shard, anyShard, keys, k.store.ExistingFlows)
}

type flowBlock struct {
	*columns.Flows
	who Resolver
}

func (b flowBlock) Append(r *delivery.Record, window traces.Window, skip func(int, Key) bool) ([]Refused, error) {
	src := columns.FlowSource{Window: window, Resolve: b.who}
	if skip != nil {
		src.Skip = func(index int, key *columns.FlowKey) bool { return skip(index, flowKey(key)) }
	}
	refused, err := b.Flows.Append(r.Value, src)
	var out []Refused
	for _, f := range refused {
		out = append(out, Refused{f.Index, f.Reason.String()})
	}
	return out, err
}

func (b flowBlock) Keys(f func(Key)) { b.Flows.Keys(func(key *columns.FlowKey) { f(flowKey(key)) }) }

func flowKey(k *columns.FlowKey) clickhouse.FlowKey {
	return clickhouse.FlowKey{
		Agent: string(k.Agent), NetworkNamespace: k.NetworkNamespace, Connection: k.Connection, End: int64(k.End), IP: k.IP,
	}
}

package writer

import (
	"context"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// Kind is what a Writer stores: [Spans] or [Flows]. A record has any number of items, each becomes a
// row of one table, and an item has a key by which it is found there.
type Kind interface {
	// Signal and Items are what metrics and messages call it: "traces" and "spans".
	Signal() string
	Items() string
	// NewBlock returns an empty block of the kind.
	NewBlock() Block
	// Count returns how many items a record's value has. It is valid, or the result counts for nothing.
	Count(value []byte) int
	// Select returns a value with those items for which keep is true. index counts all
	// items of value from 0.
	Select(value []byte, keep func(index int) bool) ([]byte, error)
	// Existing returns those of keys that are stored: at the shard, or with anyShard at any, which
	// takes all shards to answer.
	Existing(ctx context.Context, shard int, anyShard bool, keys []Key) (map[Key]struct{}, error)
}

// Key is what makes two items the same one. It is comparable.
type Key any

// Block is rows of one table. It belongs to one goroutine.
type Block interface {
	// Table is the table of the rows.
	Table() string
	Rows() int
	// Bytes is the memory that the rows take, as they are sent before compression.
	Bytes() int
	// Input returns the columns, valid until the next Append or Reset.
	Input() proto.Input
	// Reset empties the block and keeps its memory.
	Reset()
	// Append decodes a record and appends a row for each item that lies in the window, and
	// returns those that cannot be stored. It keeps no reference to the record. An error says that the value is
	// malformed; nothing was appended then.
	//
	// skip, when it is not nil, is asked for every acceptable item; those it returns true for are left
	// out. index counts all items of the record from 0. What is decided depends on the record, the window and
	// skip alone.
	Append(r *delivery.Record, window traces.Window, skip func(index int, key Key) bool) ([]Refused, error)
	// Keys calls f with the key of every row.
	Keys(f func(Key))
}

// Refused is an item of a record that cannot be stored.
type Refused struct {
	Index  int
	Reason string
}

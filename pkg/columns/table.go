package columns

import (
	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Table is where ClickHouse keeps the items of a signal, a row each.
type Table struct {
	Signal *signal.Signal
	Name   string
	// New returns an empty block of its rows.
	New func() Block
	// Lookup finds rows by their keys.
	Lookup Lookup
}

// Block is rows of one table. It belongs to one goroutine, and keeps its memory
// over Reset.
type Block interface {
	// Table is the table of the rows.
	Table() string
	Rows() int
	// Bytes is the memory that the rows take, as they are sent before
	// compression.
	Bytes() int
	// Input returns the columns with their names, valid until the next Append or
	// Reset.
	Input() proto.Input
	// Reset empties the block.
	Reset()
	// Append decodes a request, appends a row for each item that lies in the
	// window, and returns the items that cannot be stored. It repairs texts that
	// are not UTF-8. It keeps no reference to request. The error is nil or
	// signal.ErrMalformed, and then nothing was appended. What Append decides
	// depends on its arguments alone.
	Append(request []byte, src Source) ([]signal.Refused, error)
	// Join appends the rows of another block of the table, which stays as it is.
	// A block that others were joined to appends no request before its Reset.
	Join(other Block)
	// Keys calls f with the key of every row. It is for the rare block in which
	// items are looked for, not for speed.
	Keys(f func(signal.Key))
}

// Source says where a request came from and which of its items are wanted.
type Source struct {
	Agent  string        // id of the delivering agent
	Window signal.Window // in which items must lie
	// Skip, when set, is asked for every acceptable item. Those for which it
	// returns true are left out. index counts all items of the request from 0.
	Skip func(index int, key signal.Key) bool
}

// Lookup says how to find rows by their keys, so that the question reaches the
// primary key.
type Lookup struct {
	// Time is the column that holds Key.Time, which the table is sorted by.
	Time string
	// Wanted returns columns of the table, by their names, with a row for each
	// key: the rows that are looked for have these values.
	Wanted func(keys []signal.Key) proto.Input
	// Select lists expressions over the table. They make the columns that Found
	// reads.
	Select string
	// Found returns columns to decode an answer into, and what calls f with the
	// key of each of their rows.
	Found func() (results proto.Results, each func(f func(signal.Key)) error)
}

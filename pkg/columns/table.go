package columns

import (
	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Table describes the ClickHouse table of a signal, with one row per item.
type Table struct {
	Signal *signal.Signal
	Name   string
	// New returns an empty block of the table's rows.
	New func() Block
	// Lookup finds rows by key.
	Lookup Lookup
}

// Block is a block of rows of one table. It is not safe for concurrent use, and Reset
// keeps its memory.
type Block interface {
	// Table returns the name of the rows' table.
	Table() string
	Rows() int
	// Bytes returns the size of the rows as sent, before compression.
	Bytes() int
	// Kept returns the memory that the columns keep when the block is Reset.
	Kept() int
	// Input returns the named columns, valid until the next Append or Reset.
	Input() proto.Input
	// Reset empties the block.
	Reset()
	// Append decodes a request, appends a row for each item inside the window, and
	// returns the items that cannot be stored. It repairs texts that are not UTF-8. It
	// does not retain request. It returns signal.ErrMalformed if it appended nothing
	// because the request is malformed. The outcome depends only on the arguments.
	Append(request []byte, src Source) ([]signal.Refused, error)
	// Join makes the rows of another block of the table, on which Join was not called, follow
	// those of this block. It does not copy them: the other block must not change before
	// this one is Reset. After a Join, Reset the block before the next Append or Keys.
	Join(other Block)
	// Keys calls f with the key of every row. It is for the rare lookup of a block, not
	// for the hot path.
	Keys(f func(signal.Key))
}

// Source describes the origin of a request and which of its items are wanted.
type Source struct {
	Agent  string        // id of the delivering agent
	Window signal.Window // items outside are refused
	// Skip, if set, is called for every acceptable item. Items for which it returns true
	// are omitted. index counts all items of the request from 0.
	Skip func(index int, key signal.Key) bool
}

// Lookup describes how to find rows by key so that the query uses the primary key.
type Lookup struct {
	// Time is the column of Key.Time, by which the table is sorted.
	Time string
	// Wanted returns named columns of the table with one row per key: matching rows have
	// these values.
	Wanted func(keys []signal.Key) proto.Input
	// Select lists the expressions that produce the columns of Found.
	Select string
	// Found returns columns to decode a response into, and a function that calls f with
	// the key of each row.
	Found func() (results proto.Results, each func(f func(signal.Key)) error)
}

// Package plan names the ranges of a partition that a writer inserts as one
// block each.
//
// Before a writer inserts the records [From, To) of a partition it commits
// offset From to the consumer group with [Metadata] that names To. Whoever
// owns the partition after a crash reads that back with [Parse], forms the very
// same range again and inserts it under the same [Range.Token], so that ClickHouse can tell
// that it has stored the block already.
//
// The package does no I/O. The formats below are stored data: a change needs
// a new version word, and readers of both.
package plan

import (
	"fmt"
	"strconv"
	"strings"
)

// Range is the records of a partition from offset From up to, not including, To.
type Range struct {
	Topic     string
	Partition int
	From, To  int64
}

// Token is the insert_deduplication_token of the range.
func (r Range) Token() string {
	return fmt.Sprintf("%s/%d/%d-%d", r.Topic, r.Partition, r.From, r.To)
}

// Part is the token of rows [from, to) of the range, used when the range is
// refused as a whole and inserted piece by piece.
func (r Range) Part(from, to int) string {
	return fmt.Sprintf("%s/rows/%d-%d", r.Token(), from, to)
}

const version = "metaflow/1"

// Metadata is the commit metadata that announces the insert of a range that
// starts at the committed offset and ends before to.
func Metadata(to int64) string {
	return version + " to=" + strconv.FormatInt(to, 10)
}

// Parse reads the metadata of a commit at offset from. ok is false when
// nothing is announced: there is no metadata, or it is not ours, as after an
// operator reset the offsets. An announcement of a version that this program does
// not know is an error, because ignoring it could store a block twice.
func Parse(from int64, metadata string) (to int64, ok bool, err error) {
	word, rest, _ := strings.Cut(metadata, " ")
	if !strings.HasPrefix(word, "metaflow/") {
		return 0, false, nil
	}
	if word != version {
		return 0, false, fmt.Errorf("read plan %q: version is not %s", metadata, version)
	}
	value, found := strings.CutPrefix(rest, "to=")
	to, perr := strconv.ParseInt(value, 10, 64)
	if !found || perr != nil {
		return 0, false, fmt.Errorf("read plan %q: want %q", metadata, Metadata(0))
	}
	if to <= from {
		return 0, false, fmt.Errorf("read plan %q: it ends before the committed offset %d", metadata, from)
	}
	return to, true, nil
}

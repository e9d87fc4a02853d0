// Package plan names the ranges of a partition that a writer inserts as one
// block each.
//
// Before a writer inserts the records [From, To) of a partition it commits
// offset From to the consumer group with the metadata of a [Plan], which names To.
// Whoever owns the partition after a crash reads that back with [Parse], forms the very
// same range again and inserts it under the same [Range.Token], so that ClickHouse can tell
// that it has stored the block already.
//
// The package does no I/O. The formats below are stored data: a change needs
// a new version word, and readers of both.
package plan

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Range is the records of a partition from offset From up to, not including, To.
type Range struct {
	Topic     string
	Partition int
	From, To  int64
	// First is the timestamp of the record at From, in milliseconds, or 0 where
	// that is not known. A topic that is deleted and created again has the same
	// offsets again; this tells their records from the former ones.
	First int64
}

// Token is the insert_deduplication_token of the range.
func (r Range) Token() string {
	token := fmt.Sprintf("%s/%d/%d-%d", r.Topic, r.Partition, r.From, r.To)
	if r.First != 0 {
		token += "@" + strconv.FormatInt(r.First, 10)
	}
	return token
}

// Part is the token of rows [from, to) of the range, used when the range is
// refused as a whole and inserted piece by piece.
func (r Range) Part(from, to int) string {
	return fmt.Sprintf("%s/rows/%d-%d", r.Token(), from, to)
}

// Plan announces the insert of the range that starts at the committed offset.
type Plan struct {
	To    int64 // the end of the range
	First int64 // as in Range
	// Shard is where the range goes: tokens are known only there. Negative is
	// where the spans of the partition go at the moment.
	Shard int
	// Apart says that the range was refused as a whole: pieces of it may have been
	// stored, under tokens of their own, and the whole must not be tried again.
	Apart bool
}

const (
	// version has the words to=, first=, shard= and perhaps apart.
	version = "metaflow/2"
	// versionBare has to= alone; its ranges have tokens without First.
	versionBare = "metaflow/1"
)

// Metadata is what to commit.
func (p Plan) Metadata() string {
	text := fmt.Sprintf("%s to=%d first=%d shard=%d", version, p.To, p.First, p.Shard)
	if p.Apart {
		text += " apart"
	}
	return text
}

// Parse reads the metadata of a commit at offset from. ok is false when
// nothing is announced: there is no metadata, or it is not ours, as after an
// operator reset the offsets. An announcement of a version that this program does
// not know is an error, because ignoring it could store a block twice.
func Parse(from int64, metadata string) (p Plan, ok bool, err error) {
	word, rest, _ := strings.Cut(metadata, " ")
	if !strings.HasPrefix(word, "metaflow/") {
		return Plan{}, false, nil
	}
	switch word {
	case version:
		err = p.parse(rest)
	case versionBare:
		p.Shard = -1
		p.To, err = number(rest, "to=")
	default:
		err = fmt.Errorf("version is neither %s nor %s", version, versionBare)
	}
	if err == nil && p.To <= from {
		err = fmt.Errorf("it ends before the committed offset %d", from)
	}
	if err != nil {
		return Plan{}, false, fmt.Errorf("read plan %q: %w", metadata, err)
	}
	return p, true, nil
}

// parse reads the words of version.
func (p *Plan) parse(text string) error {
	words := strings.Split(text, " ")
	if len(words) == 4 && words[3] == "apart" {
		p.Apart, words = true, words[:3]
	}
	if len(words) != 3 {
		return fmt.Errorf("want %q, and perhaps apart", Plan{}.Metadata())
	}
	to, err1 := number(words[0], "to=")
	first, err2 := number(words[1], "first=")
	shard, err3 := number(words[2], "shard=")
	p.To, p.First, p.Shard = to, first, int(shard)
	return errors.Join(err1, err2, err3)
}

func number(word, key string) (int64, error) {
	value, found := strings.CutPrefix(word, key)
	n, err := strconv.ParseInt(value, 10, 64)
	if !found || err != nil {
		return 0, fmt.Errorf("%q is not %s and a number", word, key)
	}
	return n, nil
}

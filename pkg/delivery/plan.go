package delivery

import (
	"crypto/sha256"
	"encoding/hex"
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
	// TopicID does so too, where the brokers know it.
	TopicID string
}

// Token is the insert_deduplication_token of the range.
func (r Range) Token() string {
	token := fmt.Sprintf("%s/%d/%d-%d", r.Topic, r.Partition, r.From, r.To)
	if r.First != 0 {
		token += "@" + strconv.FormatInt(r.First, 10)
	}
	if r.TopicID != "" {
		token += "+" + r.TopicID
	}
	return token
}

// JoinedToken is the insert_deduplication_token of a block of ranges, which have these tokens.
// It is another one for every set of ranges, so it tells only the same INSERT that is sent again.
func JoinedToken(topic string, tokens []string) string {
	sum := sha256.Sum256([]byte(strings.Join(tokens, "\n")))
	return topic + "/joined/" + hex.EncodeToString(sum[:16])
}

// Plan announces the insert of the range that starts at the committed offset. The zero
// value announces nothing.
type Plan struct {
	To    int64 // the end of the range
	First int64 // as in Range
	// Shard is where the range goes: tokens are known only there. Negative means the
	// partition's current shard.
	Shard int
	// Joined means that the INSERT may carry rows of other partitions too. An older program
	// cannot end such an INSERT, so it must not take the plan over.
	Joined bool
}

// Commit is what a writer says with an offset that it commits. The zero value says nothing.
type Commit struct {
	// Topic is the id of the topic (KIP-516) in which the offset is a position, as Kafka
	// prints it; empty where the brokers have none.
	Topic string
	// Unsure is the offset before which records may be stored already although the
	// committed offset does not say so. 0, or not above the committed offset: none.
	Unsure int64
	Plan   Plan
}

const (
	// atRest begins a commit that leaves nothing to be finished. Older programs take it
	// for somebody else's words, and go on from the offset.
	atRest = "metaflow"
	// versionJoined begins a commit whose plan is Joined.
	versionJoined = "metaflow/4"
	// version begins every other commit.
	version = "metaflow/3"
	// version2 had to=, first=, shard= and perhaps apart, and no topic.
	version2 = "metaflow/2"
	// version1 had to= alone; its ranges have tokens without First.
	version1 = "metaflow/1"
)

// Metadata is what to commit with the offset from, which it repeats: an offset that
// somebody else moves with its metadata is not ours.
func (c Commit) Metadata(from int64) string {
	var b strings.Builder
	b.WriteString(atRest)
	switch {
	case c.Plan.To != 0 && c.Plan.Joined:
		b.WriteString(versionJoined[len(atRest):])
	case c.Plan.To != 0 || c.Unsure != 0:
		b.WriteString(version[len(atRest):])
	}
	if c.Topic != "" {
		b.WriteString(" topic=" + c.Topic)
	}
	fmt.Fprintf(&b, " at=%d", from)
	if c.Unsure != 0 {
		fmt.Fprintf(&b, " unsure=%d", c.Unsure)
	}
	if c.Plan.To != 0 {
		fmt.Fprintf(&b, " to=%d first=%d shard=%d", c.Plan.To, c.Plan.First, c.Plan.Shard)
	}
	return b.String()
}

// ParseCommit reads the metadata of a commit at offset from. ok is false when it is not ours:
// nothing was committed, or an operator or another program did, so that nothing is known
// about the rows after it. A version that this program does not know is an error,
// because ignoring them could store a block twice.
func ParseCommit(from int64, metadata string) (c Commit, ok bool, err error) {
	word, rest, _ := strings.Cut(metadata, " ")
	at := from
	switch word {
	case atRest, version:
		at, err = c.parse(rest, from)
	case versionJoined:
		c.Plan.Joined = true
		if at, err = c.parse(rest, from); err == nil && c.Plan.To == 0 {
			err = fmt.Errorf("it has no to=")
		}
	case version2:
		_, err = c.parse(strings.TrimSuffix(rest, " apart"), from)
	case version1:
		c.Plan.Shard = -1
		_, err = c.parse(rest, from)
	default:
		if !strings.HasPrefix(word, "metaflow/") {
			return Commit{}, false, nil
		}
		err = fmt.Errorf("version is none of %s, %s, %s and %s", versionJoined, version, version2, version1)
	}
	if err == nil && at != from {
		return Commit{}, false, nil // moved
	}
	if err == nil && c.Plan.To == 0 && (word == version1 || word == version2) {
		err = fmt.Errorf("it has no to=")
	}
	if err == nil && c.Plan.To != 0 && c.Plan.To <= from {
		err = fmt.Errorf("it ends before the committed offset %d", from)
	}
	if err != nil {
		return Commit{}, false, fmt.Errorf("read commit %q: %w", metadata, err)
	}
	return c, true, nil
}

// parse reads words of the form key=value, each key at most once, and returns the offset that at= says,
// or else from. A plan is whole or not there.
func (c *Commit) parse(text string, from int64) (at int64, err error) {
	at = from
	seen := make(map[string]bool)
	for word := range strings.FieldsSeq(text) {
		key, value, found := strings.Cut(word, "=")
		if !found || seen[key] {
			return 0, fmt.Errorf("%q is no word of it", word)
		}
		seen[key] = true
		if key == "topic" {
			c.Topic = value
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 && key != "first" {
			return 0, fmt.Errorf("%q is not a key and a number", word)
		}
		switch key {
		case "at":
			at = n
		case "unsure":
			c.Unsure = n
		case "to":
			c.Plan.To = n
		case "first":
			c.Plan.First = n
		case "shard":
			c.Plan.Shard = int(n)
		default:
			return 0, fmt.Errorf("%q is no word of it", word)
		}
	}
	if seen["first"] != seen["shard"] || seen["first"] && !seen["to"] || seen["to"] && !seen["first"] && c.Plan.Shard >= 0 {
		return 0, fmt.Errorf("it plans without all of to=, first= and shard=")
	}
	return at, nil
}

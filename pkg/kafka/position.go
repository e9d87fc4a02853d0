package kafka

import (
	"context"
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Versions of the two requests for committed offsets. Those of Kafka 2.3 carry leader
// epochs; those of 4.1 name the topic by its id. Brokers other than Apache Kafka may not
// support epochs.
const (
	commitVersion    = 7
	commitVersionID  = 10
	readVersionPlain = 4
	readVersion      = 5
	readVersionID    = 10
)

// sendCommit sends a commit once. sent reports whether it may have reached a broker.
func (c *Claim) sendCommit(ctx context.Context, p Position) (sent bool, err error) {
	if !c.fetcher.id.IsZero() && !c.group.byID.Load() {
		// The brokers may accept names only, and the name may now belong to another
		// topic.
		if err := c.changed(ctx); err != nil {
			return false, err
		}
	}
	return c.gen.commits.send(ctx, c.partition, p)
}

// readHead reads a response up to the partition and verifies that it is the claim's.
func (c *Claim) readHead(r *answerReader, byID bool) {
	ours := byID && r.topicID() == c.fetcher.id || !byID && r.text(false) == c.Topic()
	if !ours || r.length(byID) != 1 || r.int32() != int32(c.partition) {
		r.b, r.bad = nil, true
	}
}

func (c *Claim) readPosition(ctx context.Context) (Position, error) {
	versions := []int16{readVersionID, readVersion, readVersionPlain}
	if c.fetcher.id.IsZero() {
		versions = versions[1:]
	}
	var p Position
	var code, groupCode int16
	byID := false
	request := &rawCall{
		key: protocol.OffsetFetch, versions: versions, flexibleFrom: 6,
		encode: func(b []byte, version int16) []byte { return c.appendRead(b, version) },
		decode: func(r *answerReader, version int16) {
			byID = version >= readVersionID
			p, code, groupCode = c.readCommitted(r, version)
		},
	}
	if err := c.group.client.do(ctx, request, &groupCall{request, c.group.id}); err != nil {
		return Position{}, err
	}
	if err := codeError(groupCode, ""); err != nil {
		return Position{}, err
	}
	err := codeError(code, "")
	// By name, the position may be another topic's. And the absence of a position must be
	// certain.
	if topicUnknown(err) || (err == nil && !c.fetcher.id.IsZero() && (!byID || p.Offset < 0)) {
		err = errors.Join(err, c.changed(ctx))
	}
	if err != nil {
		return Position{}, err
	}
	if p.Offset < 0 {
		p = Position{Offset: -1, LeaderEpoch: -1}
	}
	return p, nil
}

// readCommitted reads the response to a request for the committed position.
func (c *Claim) readCommitted(r *answerReader, version int16) (p Position, code, groupCode int16) {
	byID := version >= readVersionID
	r.int32() // throttled
	if byID && (r.compactLength() != 1 || r.text(true) != c.group.id) {
		r.b, r.bad = nil, true
	}
	code = int16(kafkago.Unknown)
	for range r.length(byID) { // empty with an error of the whole group
		c.readHead(r, byID)
		p = Position{Offset: r.int64(), LeaderEpoch: -1}
		if version >= readVersion {
			p.LeaderEpoch = r.int32()
		}
		p.Metadata = r.text(byID)
		code = r.int16()
		r.tags(byID)
		r.tags(byID)
	}
	return p, code, r.int16()
}

func (c *Claim) appendRead(b []byte, version int16) []byte {
	if version < readVersionID {
		b = appendString(b, c.group.id)
		b = appendInt32(b, 1) // topics
		b = appendString(b, c.Topic())
		b = appendInt32(b, 1) // partitions
		return appendInt32(b, int32(c.partition))
	}
	b = appendCompactLength(b, 1) // groups
	b = appendCompactString(b, c.group.id)
	b = appendCompactNull(b) // member: for the newer group protocol only
	b = appendInt32(b, -1)   // and its epoch
	b = appendCompactLength(b, 1)
	b = append(b, c.fetcher.id[:]...)
	b = appendCompactLength(b, 1)
	b = appendInt32(b, int32(c.partition))
	b = appendNoTags(b) // of the topic
	b = appendNoTags(b) // of the group
	b = append(b, no)   // do not wait for transactions
	return appendNoTags(b)
}

// epochEnd implements Claim.EpochEnd.
func (f *fetcher) epochEnd(ctx context.Context, epoch int32) (int64, error) {
	for lookedUp := false; ; {
		if !f.known {
			if err := f.locate(ctx); err != nil {
				return 0, fmt.Errorf("ask for the end of leader epoch %d of %s/%d: %w", epoch, f.topic, f.partition, err)
			}
			lookedUp = true
		}
		if f.at.epoch < 0 || epoch < 0 {
			return -1, nil
		}
		end, err := f.client.epochEnd(ctx, f.topic, f.partition, f.at, epoch)
		f.known = err == nil
		if err == nil || lookedUp || !leaderMoved(err) {
			return end, err
		}
	}
}

package kafka

import (
	"context"
	"math"
	"slices"
	"sync"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// commits sends the commits of one generation's claims. One request is under way at a time.
// Commits that come meanwhile go out together in the next, so that many partitions which
// store at the same moment cost few requests, and a single one never waits.
type commits struct {
	group *Group
	topic topicState
	id    int // of the generation
	own   string
	// ctx never ends: a commit of one claim must not be cut short because another's caller has
	// gone. Each request has a bound of its own.
	ctx context.Context //nolint:containedctx // of the generation that this value belongs to

	mu      sync.Mutex
	sending bool
	queue   []*commitCall
}

// commitCall is the commit of one claim. What follows done is set when it is closed.
type commitCall struct {
	partition int
	position  Position

	done chan struct{}
	sent bool // it may have reached a broker
	err  error
}

func newCommits(ctx context.Context, g *Group, gen generation) *commits {
	return &commits{group: g, topic: gen.view, id: gen.id, own: gen.member, ctx: ctx}
}

// send commits a position and waits for the answer. sent says that the commit may have
// reached a broker. A partition has one commit at a time.
func (s *commits) send(ctx context.Context, partition int, p Position) (sent bool, err error) {
	if len(p.Metadata) > math.MaxInt16 {
		return false, kafkago.OffsetMetadataTooLarge
	}
	call := &commitCall{partition: partition, position: p, done: make(chan struct{})}
	s.mu.Lock()
	s.queue = append(s.queue, call)
	if !s.sending {
		s.sending = true
		go s.run()
	}
	s.mu.Unlock()
	select {
	case <-call.done:
		return call.sent, call.err
	case <-ctx.Done():
		return !s.withdraw(call), context.Cause(ctx)
	}
}

// withdraw takes a call back that was not sent. It returns false when it is too late.
func (s *commits) withdraw(call *commitCall) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, call)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return true
}

// run sends what is queued until there is nothing.
func (s *commits) run() {
	for {
		s.mu.Lock()
		calls := s.queue
		s.queue, s.sending = nil, len(calls) > 0
		s.mu.Unlock()
		if len(calls) == 0 {
			return
		}
		s.exchange(calls)
	}
}

// exchange sends calls in one request, once, and gives each its answer.
func (s *commits) exchange(calls []*commitCall) {
	versions := []int16{commitVersionID, commitVersion}
	if s.topic.id.IsZero() {
		versions = versions[1:]
	}
	codes := make(map[int]int16, len(calls))
	request := &rawCall{
		key: protocol.OffsetCommit, versions: versions, flexibleFrom: 8,
		encode: func(b []byte, version int16) []byte {
			s.group.byID.Store(version >= commitVersionID)
			return s.append(b, version, calls)
		},
		decode: func(r *answerReader, version int16) { s.read(r, version, codes, len(calls)) },
	}
	err := s.group.client.do(s.ctx, request, &groupCall{request, s.group.id})
	sent := err == nil || !request.notSent()
	for _, c := range calls {
		c.sent, c.err = sent, err
		if err == nil { // else codes may still be written to
			c.err = errNoAnswer
			if code, answered := codes[c.partition]; answered {
				c.err = codeError(code, "")
			}
		}
		close(c.done)
	}
}

func (s *commits) append(b []byte, version int16, calls []*commitCall) []byte {
	if version < commitVersionID {
		b = appendString(b, s.group.id)
		b = appendInt32(b, int32(s.id))
		b = appendString(b, s.own)
		b = append(b, 0xff, 0xff) // instance: none
		b = appendInt32(b, 1)     // topics
		b = appendString(b, s.group.topic)
		b = appendInt32(b, int32(len(calls)))
		for _, c := range calls {
			b = appendInt32(b, int32(c.partition))
			b = appendInt64(b, c.position.Offset)
			b = appendInt32(b, c.position.LeaderEpoch)
			b = appendString(b, c.position.Metadata)
		}
		return b
	}
	b = appendCompactString(b, s.group.id)
	b = appendInt32(b, int32(s.id))
	b = appendCompactString(b, s.own)
	b = appendCompactNull(b)      // instance
	b = appendCompactLength(b, 1) // topics
	b = append(b, s.topic.id[:]...)
	b = appendCompactLength(b, len(calls))
	for _, c := range calls {
		b = appendInt32(b, int32(c.partition))
		b = appendInt64(b, c.position.Offset)
		b = appendInt32(b, c.position.LeaderEpoch)
		b = appendCompactString(b, c.position.Metadata)
		b = appendNoTags(b)
	}
	b = appendNoTags(b) // of the topic
	return appendNoTags(b)
}

// read reads the answer: a code for each of n partitions of the topic.
func (s *commits) read(r *answerReader, version int16, codes map[int]int16, n int) {
	byID := version >= commitVersionID
	r.int32() // throttled
	ours := r.length(byID) == 1 && (byID && r.topicID() == s.topic.id || !byID && r.text(false) == s.group.topic)
	if !ours || r.length(byID) != n {
		r.b, r.bad = nil, true
		return
	}
	for range n {
		partition := int(r.int32())
		codes[partition] = r.int16()
		r.tags(byID)
	}
}

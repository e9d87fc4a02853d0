package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Versions of the fetch request: that of Kafka 2.1, which can carry zstd; the first with
// the flexible encoding; and the first that names the topic by its id.
const (
	fetchVersion         = 10
	fetchVersionFlexible = 12
	fetchVersionID       = 13
)

// Versions that a fetch may use, most preferred first.
var (
	fetchByID   = []int16{fetchVersionID, fetchVersionFlexible, fetchVersion}
	fetchByName = []int16{fetchVersionFlexible, fetchVersion}
)

// fetchRequest asks for the records of one partition. The library would decode the
// response into pages and copy each record out of them. Its hook for messages that do
// their own exchange lets this package read the response into one buffer and decode it in
// place: twice as fast for less than half of the CPU (BenchmarkFetch).
type fetchRequest struct {
	ctx       context.Context //nolint:containedctx // of the one exchange that this value is
	client    *Client
	topic     string
	id        TopicID
	partition int32
	at        leadership
	offset    int64
	minBytes  int32 // 0 means one
	maxBytes  int32
	maxWait   time.Duration
	buf       []byte // reused for the response if large enough
}

// fetchResponse is a response with its record batches undecoded.
type fetchResponse struct {
	buf       []byte // contains batches
	throttle  time.Duration
	code      int16
	empty     bool  // the response omits the partition, as a throttling broker does
	stableEnd int64 // end of the readable log
	logEnd    int64 // end of the replicated log
	aborted   []abortedTxn
	batches   []byte
}

// ApiKey returns the request's API key.
func (*fetchRequest) ApiKey() protocol.ApiKey { return protocol.Fetch } //nolint:staticcheck // the library's interface names it so

// ApiKey returns the response's API key.
func (*fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch } //nolint:staticcheck // the library's interface names it so

// Broker routes the request to the partition's leader.
func (r *fetchRequest) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: r.at.leader}, nil
}

// Required makes the library always use RawExchange.
func (r *fetchRequest) Required(map[protocol.ApiKey]int16) bool { return true }

// RawExchange runs in the connection's goroutine, perhaps after the caller has returned.
// It owns the buffer until it returns.
func (r *fetchRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	versions := fetchByID
	if r.id.IsZero() {
		versions = fetchByName
	}
	version, err := r.client.pickVersion(r.ctx, rw, protocol.Fetch, versions)
	if err != nil {
		return nil, err
	}
	buf, err := exchange(r.ctx, rw, r.encode(version), r.buf)
	if err != nil {
		return nil, err
	}
	res, err := r.parse(buf, version)
	if err == nil && res.empty && res.throttle > 0 {
		// The broker does not read from this connection for that long. An error makes the
		// library close it; otherwise the next request, perhaps a heartbeat, would wait
		// on it.
		return nil, &throttledError{res.throttle}
	}
	return res, err
}

// throttledError means that a quota is exhausted and the response had no records.
type throttledError struct{ wait time.Duration }

func (e *throttledError) Error() string {
	return fmt.Sprintf("broker quota exhausted for %s", e.wait)
}

func (r *fetchRequest) encode(version int16) []byte {
	be := binary.BigEndian
	flexible := version >= fetchVersionFlexible
	b := appendHeader(make([]byte, 0, 160), protocol.Fetch, uint16(version))
	if flexible {
		b = appendNoTags(b)
	}
	one := func() {
		if flexible {
			b = appendCompactLength(b, 1)
		} else {
			b = appendInt32(b, 1)
		}
	}
	b = appendInt32(b, -1) // replica: none, a consumer
	b = be.AppendUint32(b, uint32(r.maxWait.Milliseconds()))
	b = appendInt32(b, max(r.minBytes, 1)) // or maxWait
	// Only the partition's bound limits the response. The embedded broker omits aborted
	// transactions when the bound of the whole response is reached.
	b = appendInt32(b, maxResponse)
	b = append(b, readCommitted)
	b = appendInt32(b, 0)  // session: none
	b = appendInt32(b, -1) // session epoch: none
	one()                  // topic
	switch {
	case version >= fetchVersionID:
		b = append(b, r.id[:]...)
	case flexible:
		b = appendCompactString(b, r.topic)
	default:
		b = appendString(b, r.topic)
	}
	one() // partition
	b = appendInt32(b, r.partition)
	b = appendInt32(b, r.at.epoch)
	b = appendInt64(b, r.offset)
	if flexible {
		b = appendInt32(b, -1) // epoch of the last record: for followers only
	}
	b = appendInt64(b, -1) // log start: for followers only
	b = appendInt32(b, r.maxBytes)
	if !flexible {
		return appendInt32(b, 0) // forgotten topics
	}
	b = appendNoTags(b) // of the partition
	b = appendNoTags(b) // of the topic
	b = appendCompactLength(b, 0)
	b = appendCompactString(b, "") // rack
	return appendNoTags(b)
}

// readCommitted hides the records of open transactions and makes the response list the
// aborted ones.
const readCommitted = 1

// parse parses the response in buf.
func (r *fetchRequest) parse(buf []byte, version int16) (*fetchResponse, error) {
	flexible := version >= fetchVersionFlexible
	in := answerReader{b: buf[correlationSize:]}
	in.tags(flexible)
	throttle := time.Duration(in.int32()) * time.Millisecond
	res := &fetchResponse{buf: buf, throttle: max(throttle, 0), code: in.int16()}
	in.int32() // session
	topics := in.length(flexible)
	if res.code != 0 || in.bad {
		return res, in.err()
	}
	if topics == 0 {
		res.empty = true
		return res, in.err()
	}
	known := version >= fetchVersionID && in.topicID() == r.id || version < fetchVersionID && in.text(flexible) == r.topic
	partitions := in.length(flexible)
	if topics != 1 || partitions != 1 || !known || in.int32() != r.partition {
		return nil, errAnswer
	}
	res.code = in.int16()
	res.logEnd = in.int64()
	res.stableEnd = in.int64()
	if res.stableEnd < 0 {
		res.stableEnd = res.logEnd
	}
	in.int64() // start of the log
	for range in.length(flexible) {
		if in.bad {
			break
		}
		res.aborted = append(res.aborted, abortedTxn{producer: in.int64(), first: in.int64()})
		in.tags(flexible)
	}
	if version > fetchVersion {
		in.int32() // preferred replica
	}
	if flexible {
		res.batches = in.take(max(in.compactLength(), 0))
	} else {
		res.batches = in.bytes()
	}
	return res, in.err()
}

// fetcher reads one partition. It keeps what it knows about the partition, and memory
// that successive fetches share.
type fetcher struct {
	client    *Client
	topic     string
	partition int
	id        TopicID
	fixed     bool // id is the topic the caller wants, not just the one last seen

	at    leadership
	known bool // at may be used
	// read is where the last fetch ended, and sought is the position set by seek. A fetch
	// from one of them relies on the log before it.
	read, sought mark
	stableEnd    int64     // from the last response; negative before the first
	logEnd       int64     // from the last response
	throttled    time.Time // when the brokers accept the next fetch

	buf []byte
	decoder
}

// mark is an offset before which everything was read, with the leader epoch of the last
// batch before it, negative when unknown.
type mark struct {
	offset  int64
	epoch   int32
	checked int32 // the leader epoch in which the log was last verified
}

var noMark = mark{offset: -1, epoch: -1, checked: -1}

func newFetcher(c *Client, topic string, partition int) fetcher {
	return fetcher{client: c, topic: topic, partition: partition, read: noMark, sought: noMark, stableEnd: -1}
}

// damagedFetches is how often a batch with damaged bytes is fetched. A disk or network
// that damages bytes once rarely does so again.
const damagedFetches = 3

// fetch implements Client.Fetch and Claim.Fetch. It refetches a damaged batch over new
// connections and asks for more data, so that reading can continue behind it. When the
// leader has moved, it looks the leader up once.
func (f *fetcher) fetch(ctx context.Context, offset int64, minBytes, maxBytes int, maxWait time.Duration) (Batch, error) {
	f.trim(maxBytes)
	lookedUp := false
	for attempt := 1; ; {
		if idle, err := f.waitForQuota(ctx, offset, maxWait); idle || err != nil {
			return Batch{
				Next: offset, HighWatermark: f.stableEnd, LogEnd: f.logEnd, LeaderEpoch: -1, TopicID: f.id, Throttled: true,
			}, f.because(offset, err)
		}
		if !f.known {
			if err := f.locate(ctx); err != nil {
				return Batch{}, f.because(offset, err)
			}
			lookedUp = true
		}
		batch, err := f.once(ctx, offset, minBytes, maxBytes, maxWait)
		var throttled *throttledError
		switch {
		case err == nil:
			return batch, nil
		case errors.As(err, &throttled):
			f.throttled = time.Now().Add(throttled.wait)
			f.client.log.Debug("broker quota exhausted", slog.String("topic", f.topic), slog.Int("partition", f.partition), slog.Duration("wait", throttled.wait))
		case leaderMoved(err):
			f.known = false
			if lookedUp {
				return Batch{}, f.because(offset, err)
			}
		case damaged(err) && attempt < damagedFetches:
			f.client.log.Warn("damaged record batch, fetching it again", slog.Any("error", err))
			f.client.metrics.damaged.WithLabelValues(f.topic).Inc()
			f.client.transport.CloseIdleConnections()
			maxBytes = 2*maxBytes + defaultMaxBatchBytes
			if err := retry.Sleep(ctx, backoff.Pause(attempt+1)); err != nil {
				return Batch{}, f.because(offset, err)
			}
			attempt++
		default:
			// A broker that does not respond may no longer be the leader.
			f.known = f.known && ofTheLog(err)
			return Batch{}, f.because(offset, err)
		}
	}
}

func (f *fetcher) because(offset int64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("fetch %s/%d from offset %d: %w", f.topic, f.partition, offset, err)
}

// waitForQuota waits until the brokers accept the next fetch. If that takes longer than
// maxWait, it waits only maxWait and returns idle, unless the end of the log is still
// unknown.
func (f *fetcher) waitForQuota(ctx context.Context, offset int64, maxWait time.Duration) (idle bool, err error) {
	wait := time.Until(f.throttled)
	if wait <= 0 {
		return false, nil
	}
	if idle = f.stableEnd >= offset && wait > maxWait; idle {
		wait = maxWait
	}
	return idle, retry.Sleep(ctx, wait)
}

// locate looks up the partition's leader and verifies that the topic is still the
// expected one.
func (f *fetcher) locate(ctx context.Context) error {
	f.known = false
	state, err := f.client.describe(ctx, f.topic)
	if errors.Is(err, kafkago.UnknownTopicOrPartition) && f.fixed && !f.id.IsZero() {
		return fmt.Errorf("%w (%w)", ErrTopicChanged, err)
	}
	if err != nil {
		return err
	}
	if f.fixed && state.id != f.id {
		return fmt.Errorf("%w: its id is %s, not %s", ErrTopicChanged, state.id, f.id)
	}
	if f.partition >= len(state.partitions) {
		return fmt.Errorf("the topic has %d partitions: %w", len(state.partitions), kafkago.UnknownTopicOrPartition)
	}
	at := state.partitions[f.partition]
	if at.leader < 0 {
		return kafkago.LeaderNotAvailable
	}
	f.id, f.at, f.known = state.id, at, true
	return nil
}

// once sends one fetch request to the known leader.
func (f *fetcher) once(ctx context.Context, offset int64, minBytes, maxBytes int, maxWait time.Duration) (Batch, error) {
	if err := f.check(ctx, offset); err != nil {
		return Batch{}, err
	}
	deadline := maxWait + controlTimeout
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	req := &fetchRequest{
		ctx: ctx, client: f.client, topic: f.topic, id: f.id, partition: int32(f.partition), at: f.at, offset: offset,
		minBytes: int32(min(minBytes, maxBytes, maxResponse)), maxBytes: int32(min(maxBytes, maxResponse)),
		maxWait: maxWait, buf: f.buf,
	}
	f.buf = nil // the exchange owns it until it returns
	answer, err := f.client.roundTrip(ctx, deadline, req)
	if err != nil {
		return Batch{}, err
	}
	res := answer.(*fetchResponse)
	f.buf = res.buf
	f.throttled = time.Now().Add(res.throttle)
	batch, err := f.answer(res, offset)
	if err != nil {
		return Batch{}, err
	}
	f.client.metrics.fetched(f.topic, &batch, len(res.batches))
	return batch, nil
}

// check verifies that the log still contains what was read before offset. It asks once in
// each leader epoch, because within an epoch a log only grows.
func (f *fetcher) check(ctx context.Context, offset int64) error {
	for _, m := range []*mark{&f.read, &f.sought} {
		if m.offset != offset || m.epoch < 0 || f.at.epoch < 0 || m.checked == f.at.epoch {
			continue
		}
		end, err := f.client.epochEnd(ctx, f.topic, f.partition, f.at, m.epoch)
		if err != nil {
			return err
		}
		if end >= 0 && end < offset {
			return fmt.Errorf("%w: leader epoch %d ends at offset %d now, in epoch %d", ErrTruncated, m.epoch, end, f.at.epoch)
		}
		m.checked = f.at.epoch
	}
	return nil
}

// seek declares that everything before p.Offset was read, up to a record of
// p.LeaderEpoch.
func (f *fetcher) seek(p Position) {
	f.read, f.sought = noMark, mark{offset: p.Offset, epoch: p.LeaderEpoch, checked: -1}
}

// trim releases memory that an exceptionally large batch has left behind.
func (f *fetcher) trim(maxBytes int) {
	const slack = 1 << 20
	if cap(f.buf) > 2*maxBytes+slack {
		f.buf = nil
	}
	if cap(f.plain) > usualRatio*maxBytes+slack {
		f.plain = nil
	}
}

// usualRatio exceeds the compression of spans under most codecs.
const usualRatio = 16

func (f *fetcher) answer(res *fetchResponse, offset int64) (Batch, error) {
	err := codeError(res.code, "")
	switch {
	case errors.Is(err, kafkago.OffsetOutOfRange):
		return Batch{}, ErrOffsetOutOfRange
	case err != nil:
		f.client.refreshOnError(err)
		return Batch{}, err
	case res.empty:
		return Batch{}, errNoAnswer
	}
	f.aborted.set(res.aborted)
	batch, err := f.decode(res.batches, offset)
	if err != nil {
		return Batch{}, classifyFetch(err)
	}
	batch.HighWatermark, batch.LogEnd, batch.TopicID = res.stableEnd, res.logEnd, f.id
	f.stableEnd, f.logEnd = res.stableEnd, res.logEnd
	if batch.LeaderEpoch >= 0 {
		f.read = mark{offset: batch.Next, epoch: batch.LeaderEpoch, checked: f.at.epoch}
	}
	return batch, nil
}

// logName identifies a partition.
type logName struct {
	topic     string
	partition int
}

// located is what Client.Fetch remembers of a partition.
type located struct {
	id TopicID
	at leadership
}

// Fetch returns the records of a partition from offset on: about maxBytes at most,
// compressed, but at least one batch if there is one. Records is empty if nothing arrives
// within maxWait. While a broker quota is exhausted, Fetch waits. An offset outside the
// log is ErrOffsetOutOfRange; the end of the log is inside. Fetch does not return records
// of aborted or open transactions. The records belong to the caller.
//
// Callers that follow a log must compare Batch.TopicID: another id means another log, in
// which the requested offset has no meaning.
func (c *Client) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	f := newFetcher(c, topic, partition)
	name := logName{topic, partition}
	c.mu.Lock()
	if l, ok := c.located[name]; ok {
		f.id, f.at, f.known = l.id, l.at, true
	}
	c.mu.Unlock()
	batch, err := f.fetch(ctx, offset, 1, maxBytes, maxWait)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.known || err != nil {
		delete(c.located, name)
		return batch, err
	}
	if c.located == nil {
		c.located = map[logName]located{}
	}
	c.located[name] = located{f.id, f.at}
	return batch, err
}

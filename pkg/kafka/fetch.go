package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// fetchVersion is that of Kafka 2.1. It is the first that can carry zstd, and
// nothing later matters here.
const fetchVersion = 10

// fetchRequest asks for the records of one partition. The library would
// decode the answer into pages and copy each record out of them; through its hook for
// messages that do their own exchange, the answer is read into one buffer and
// decoded in place. That is twice as fast for less than half of the CPU (BenchmarkFetch).
type fetchRequest struct {
	ctx       context.Context //nolint:containedctx // of the one exchange that this value is
	topic     string
	partition int32
	offset    int64
	maxBytes  int32
	maxWait   time.Duration
	version   int16
	buf       []byte // memory for the answer, used again when it is large enough
}

// fetchResponse is the answer, with the record batches as they came.
type fetchResponse struct {
	buf           []byte // what batches is part of
	code          int16
	highWatermark int64
	batches       []byte
}

// ApiKey says which of Kafka's requests this is.
func (*fetchRequest) ApiKey() protocol.ApiKey { return protocol.Fetch } //nolint:staticcheck // the library's interface names it so

// ApiKey says which of Kafka's answers this is.
func (*fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch } //nolint:staticcheck // the library's interface names it so

// Broker routes the request to the partition's leader.
func (r *fetchRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	route := fetch.Request{Topics: []fetch.RequestTopic{{
		Topic: r.topic, Partitions: []fetch.RequestPartition{{Partition: r.partition}},
	}}}
	return route.Broker(cluster)
}

// Required says that RawExchange is to be used, always.
func (r *fetchRequest) Required(versions map[protocol.ApiKey]int16) bool {
	r.version = versions[protocol.Fetch]
	return true
}

// RawExchange runs in the connection's goroutine, perhaps after the caller has
// gone. The buffer is the exchange's until it returns.
func (r *fetchRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.version < fetchVersion {
		return nil, fmt.Errorf("the broker is older than Kafka 2.1: %w", kafkago.UnsupportedVersion)
	}
	buf, err := exchange(r.ctx, rw, r.encode(), r.buf)
	if err != nil {
		return nil, err
	}
	return parseFetch(buf, r.topic, r.partition)
}

func (r *fetchRequest) encode() []byte {
	be := binary.BigEndian
	b := appendHeader(make([]byte, 0, 128), protocol.Fetch, fetchVersion)
	b = be.AppendUint32(b, ^uint32(0)) // replica: none, a consumer
	b = be.AppendUint32(b, uint32(r.maxWait.Milliseconds()))
	b = be.AppendUint32(b, 1) // at least one byte, or maxWait
	b = be.AppendUint32(b, uint32(r.maxBytes))
	b = append(b, 0)                   // isolation: read uncommitted, nobody here writes in transactions
	b = be.AppendUint32(b, 0)          // session: none
	b = be.AppendUint32(b, ^uint32(0)) // session epoch: none
	b = be.AppendUint32(b, 1)          // topics
	b = appendString(b, r.topic)
	b = be.AppendUint32(b, 1) // partitions
	b = be.AppendUint32(b, uint32(r.partition))
	b = be.AppendUint32(b, ^uint32(0)) // leader epoch: unknown
	b = be.AppendUint64(b, uint64(r.offset))
	b = be.AppendUint64(b, ^uint64(0)) // log start: only followers know
	b = be.AppendUint32(b, uint32(r.maxBytes))
	return be.AppendUint32(b, 0) // forgotten topics
}

// parseFetch reads the answer in buf to a request for one partition.
func parseFetch(buf []byte, topic string, partition int32) (*fetchResponse, error) {
	r := answerReader{b: buf[correlationSize:]}
	r.int32() // throttled for so many milliseconds, by the broker itself
	res := &fetchResponse{buf: buf, code: r.int16()}
	r.int32() // session
	topics := r.int32()
	if res.code != 0 || r.bad {
		return res, r.err()
	}
	name := r.string()
	partitions := r.int32()
	if topics != 1 || partitions != 1 || name != topic || r.int32() != partition {
		return nil, errAnswer
	}
	res.code = r.int16()
	res.highWatermark = r.int64()
	r.int64() // last stable offset
	r.int64() // start of the log
	for range max(r.int32(), 0) {
		if r.bad {
			break
		}
		r.int64() // an aborted transaction: its producer
		r.int64() // and its first offset
	}
	res.batches = r.bytes()
	return res, r.err()
}

// fetcher holds the memory of fetches that follow one another.
type fetcher struct {
	client *Client
	buf    []byte
	decoder
}

// Fetch returns what a partition has from offset on: at most about maxBytes
// compressed, but at least one batch of records when there is any. When nothing comes within
// maxWait, Records is empty. An offset outside the log is ErrOffsetOutOfRange; the
// end of the log is not outside. The records are the caller's.
func (c *Client) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	f := fetcher{client: c}
	return f.fetch(ctx, topic, partition, offset, maxBytes, maxWait)
}

// damagedFetches is how often a batch is fetched whose bytes are not what the
// producer sent. A disk or a network that spoils them once rarely does it again.
const damagedFetches = 3

// fetch does what Client.Fetch says. A damaged batch is fetched again, over new
// connections, and with more of what follows it, where reading can go on.
func (f *fetcher) fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	f.trim(maxBytes)
	for attempt := 1; ; attempt++ {
		batch, err := f.once(ctx, topic, partition, offset, maxBytes, maxWait)
		if !damaged(err) || attempt == damagedFetches {
			return batch, err
		}
		f.client.log.Warn("a batch is damaged, fetching it again", "error", err)
		f.client.metrics.damaged.WithLabelValues(topic).Inc()
		f.client.transport.CloseIdleConnections()
		maxBytes = 2*maxBytes + defaultMaxBatchBytes
		if err := sleep(ctx, backoff(attempt)); err != nil {
			return Batch{}, fmt.Errorf("fetch %s/%d from offset %d: %w", topic, partition, offset, err)
		}
	}
}

// once fetches once.
func (f *fetcher) once(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (Batch, error) {
	deadline := maxWait + controlTimeout
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	req := &fetchRequest{
		ctx: ctx, topic: topic, partition: int32(partition), offset: offset,
		maxBytes: int32(min(maxBytes, maxResponse)), maxWait: maxWait, buf: f.buf,
	}
	f.buf = nil // the exchange has it until it answers
	answer, err := f.client.roundTrip(ctx, deadline, req)
	if err != nil {
		return Batch{}, fmt.Errorf("fetch %s/%d from offset %d: %w", topic, partition, offset, err)
	}
	res := answer.(*fetchResponse)
	f.buf = res.buf
	batch, err := f.answer(res, offset)
	if err != nil {
		return Batch{}, fmt.Errorf("fetch %s/%d from offset %d: %w", topic, partition, offset, err)
	}
	f.client.metrics.fetched(topic, &batch, len(res.batches))
	return batch, nil
}

// trim lets go of memory that an exceptionally large batch has left behind.
func (f *fetcher) trim(maxBytes int) {
	const slack = 1 << 20
	if cap(f.buf) > 2*maxBytes+slack {
		f.buf = nil
	}
	if cap(f.plain) > usualRatio*maxBytes+slack {
		f.plain = nil
	}
}

// usualRatio is more than spans compress under most codecs.
const usualRatio = 16

func (f *fetcher) answer(res *fetchResponse, offset int64) (Batch, error) {
	err := codeError(res.code, "")
	switch {
	case errors.Is(err, kafkago.OffsetOutOfRange):
		return Batch{}, ErrOffsetOutOfRange
	case err != nil:
		f.client.suspect(err)
		return Batch{}, err
	}
	batch, err := f.decode(res.batches, offset)
	if err != nil {
		return Batch{}, classifyFetch(err)
	}
	batch.HighWatermark = res.highWatermark
	return batch, nil
}

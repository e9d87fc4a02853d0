package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
	"unsafe"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
)

// maxDecompressed bounds the decompressed size of one record batch. Brokers accept 1 MiB
// batches by default and spans compress up to tenfold; a batch beyond this bound is
// treated as an attack on memory.
const maxDecompressed = 64 << 20

var (
	errCRC     = errors.New("wrong checksum")
	errFormat  = errors.New("format older than Kafka 0.11")
	errLength  = errors.New("wrong length")
	errCut     = errors.New("batch is cut off")
	errRecords = errors.New("malformed records")
)

// Batch is the result of one fetch.
type Batch struct {
	Records []delivery.Record
	// Next is the offset to fetch next. It may lie beyond the last record, because
	// compaction and transactions leave offsets without records.
	Next int64
	// HighWatermark is the end of what can be read: the end of the replicated log, or the
	// first record of an open transaction if that is earlier.
	HighWatermark int64
	// LogEnd is the end of the replicated log. Records between HighWatermark and LogEnd
	// wait for an open transaction.
	LogEnd int64
	// LeaderEpoch is the epoch of the last record batch before Next, or -1 if this fetch
	// returned none.
	LeaderEpoch int32
	// TopicID identifies the log that was read.
	TopicID TopicID
	// Throttled means that a broker quota delayed this client and the log was not read:
	// Records is empty, Next is the requested offset, and HighWatermark and LogEnd repeat
	// the previous response. Records from Next on may exist; fetch again.
	Throttled bool

	headers [][]byte // encoded, one element per record
}

// Headers returns all headers of record i, including those already decoded into its Meta.
func (b *Batch) Headers(i int) []delivery.Header {
	var headers []delivery.Header
	if i < len(b.headers) {
		_ = eachHeader(b.headers[i], func(key string, value []byte) {
			headers = append(headers, delivery.Header{Key: string([]byte(key)), Value: value})
		})
	}
	return headers
}

// decoder decodes the record batches of a fetch. It reuses its memory for the next one.
type decoder struct {
	aborted abortedTxns
	plain   []byte // decompressed batches
	records []delivery.Record
	headers [][]byte
}

// decode returns the records of data from offset from on, without those of the
// transactions in d.aborted. data is a sequence of record batches, the last of which may
// be cut off. The records share memory with data and with d.
//
// If a batch is corrupt, decode returns the records before it; if there are none, it
// returns a *CorruptError. A batch header is not trusted before its checksum is verified.
func (d *decoder) decode(data []byte, from int64) (Batch, error) {
	d.plain, d.records, d.headers = d.plain[:0], d.records[:0], d.headers[:0]
	next, epoch := from, int32(-1)
	for rest := data; len(rest) > 0; {
		h, err := cut(rest)
		if errors.Is(err, errCut) && len(rest) < len(data) {
			break // cut off by the size limit of the fetch, which never applies to the first batch
		}
		rest = rest[len(h):]
		if err == nil {
			err = h.check()
		}
		if err != nil {
			return d.corrupt(next, following(rest, next), epoch, err)
		}
		if after := h.next(); after > next {
			if err := d.batch(h, next); err != nil {
				return d.corrupt(next, after, epoch, err)
			}
			next, epoch = after, h.epoch()
		}
	}
	return Batch{Records: d.records, Next: next, LeaderEpoch: epoch, headers: d.headers}, nil
}

// cut returns the first batch of data.
func cut(data []byte) (batchHeader, error) {
	if len(data) < batchHeaderSize {
		return nil, errCut
	}
	length := int(int32(binary.BigEndian.Uint32(data[batchAtLength:]))) + batchAtEpoch
	switch {
	case length < batchHeaderSize:
		return nil, errLength
	case length > len(data):
		return nil, errCut
	default:
		return data[:length], nil
	}
}

// following returns the offset to continue at when the batch at offset has no reliable
// end: the base offset of the next batch in rest if it is valid, otherwise the next
// offset.
func following(rest []byte, offset int64) int64 {
	if h, err := cut(rest); err == nil && h.check() == nil && h.base() > offset {
		return h.base()
	}
	return offset + 1
}

// damaged reports whether err may come from the path between disk and client, so that
// another fetch may return good bytes.
func damaged(err error) bool {
	return errors.Is(err, errCRC) || errors.Is(err, errFormat) || errors.Is(err, errLength) || errors.Is(err, errCut)
}

func (d *decoder) corrupt(offset, next int64, epoch int32, cause error) (Batch, error) {
	if len(d.records) > 0 {
		return Batch{Records: d.records, Next: offset, LeaderEpoch: epoch, headers: d.headers}, nil
	}
	return Batch{}, &CorruptError{Offset: offset, Next: next, Cause: cause}
}

// batchHeader is a whole batch; its methods read the header fields.
type batchHeader []byte

func (h batchHeader) base() int64 { return int64(binary.BigEndian.Uint64(h[batchAtOffset:])) }

// check verifies the format and the checksum. The checksum does not cover the base offset
// and the length, because the broker sets them.
func (h batchHeader) check() error {
	switch {
	case h[batchAtMagic] != batchMagic:
		return errFormat
	case crc32.Checksum(h[batchAtAttributes:], castagnoli) != binary.BigEndian.Uint32(h[batchAtCRC:]):
		return errCRC
	default:
		return nil
	}
}

// next returns the offset after the batch's last record, even if compaction removed that
// record.
func (h batchHeader) next() int64 {
	return h.base() + int64(int32(binary.BigEndian.Uint32(h[batchAtLastDelta:]))) + 1
}

// epoch returns the epoch of the leader that appended the batch.
func (h batchHeader) epoch() int32 { return int32(binary.BigEndian.Uint32(h[batchAtEpoch:])) }

func (h batchHeader) producer() int64 { return int64(binary.BigEndian.Uint64(h[batchAtProducer:])) }

func (h batchHeader) attributes() uint16 { return binary.BigEndian.Uint16(h[batchAtAttributes:]) }

// batch adds the records of h from offset from on. h must have passed check.
func (d *decoder) batch(h batchHeader, from int64) error {
	if h.attributes()&attrControl != 0 {
		return d.aborted.end(h)
	}
	if d.aborted.has(h) {
		return nil
	}
	body := []byte(h[batchHeaderSize:])
	if codec := int(h.attributes() & attrCodec); codec != codecNone {
		start := len(d.plain)
		plain, err := appendDecompressed(d.plain, codec, body, maxDecompressed)
		if err != nil {
			return fmt.Errorf("decompress: %w", err)
		}
		// If grow moved d.plain, the records of earlier batches keep the old memory.
		d.plain, body = plain, plain[start:]
	}
	n := len(d.records)
	if err := d.all(h, body, from); err != nil {
		d.records, d.headers = d.records[:n], d.headers[:n]
		return err
	}
	return nil
}

// all adds the records of body from offset from on.
func (d *decoder) all(h batchHeader, body []byte, from int64) error {
	last := h.base() - 1
	for range int(int32(binary.BigEndian.Uint32(h[batchAtCount:]))) {
		size, n := binary.Varint(body)
		if n <= 0 || size < 0 || size > int64(len(body)-n) {
			return errRecords
		}
		offset, err := d.one(h, body[n:n+int(size)], from)
		if err != nil {
			return err
		}
		if offset <= last || offset >= h.next() {
			return errRecords
		}
		last = offset
		body = body[n+int(size):]
	}
	return nil
}

// one adds the record in b, unless it lies before offset from, and returns its offset.
func (d *decoder) one(h batchHeader, b []byte, from int64) (offset int64, err error) {
	r := fieldReader{b: b}
	r.skip(1)
	timeDelta := r.varint()
	offset = h.base() + r.varint()
	key := r.bytes()
	value := r.bytes()
	if r.bad {
		return 0, errRecords
	}
	if offset < from {
		return offset, nil
	}
	millis := int64(binary.BigEndian.Uint64(h[batchAtFirstTime:])) + timeDelta
	if h.attributes()&attrLogAppendTime != 0 {
		millis = int64(binary.BigEndian.Uint64(h[batchAtMaxTime:]))
	}
	rec := delivery.Record{Offset: offset, Time: time.UnixMilli(millis), Key: key, Value: value}
	if err := eachHeader(r.b, rec.Meta.Set); err != nil {
		return 0, err
	}
	d.records = append(d.records, rec)
	d.headers = append(d.headers, r.b)
	return offset, nil
}

// eachHeader calls f for every header in b. key is valid only until f returns.
func eachHeader(b []byte, f func(key string, value []byte)) error {
	r := fieldReader{b: b}
	for range r.varint() {
		key := r.bytes()
		value := r.bytes()
		if r.bad {
			break
		}
		f(unsafe.String(unsafe.SliceData(key), len(key)), value)
	}
	if r.bad {
		return errRecords
	}
	return nil
}

// fieldReader reads the fields of a record. After the first error it is bad and returns
// zeros.
type fieldReader struct {
	b   []byte
	bad bool
}

func (r *fieldReader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *fieldReader) skip(n int) {
	if n > len(r.b) {
		r.b, r.bad = nil, true
		return
	}
	r.b = r.b[n:]
}

// bytes returns a nullable field. Its capacity equals its length.
func (r *fieldReader) bytes() []byte {
	n := r.varint()
	if n < 0 {
		return nil
	}
	if n > int64(len(r.b)) {
		r.b, r.bad = nil, true
		return nil
	}
	field := r.b[:n:n]
	r.b = r.b[n:]
	return field
}

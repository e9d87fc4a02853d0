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

// maxDecompressed bounds what one record batch may decompress to. Brokers
// take 1 MiB batches by default and spans compress up to tenfold; a batch
// beyond this bound is taken for an attack on memory.
const maxDecompressed = 64 << 20

var (
	errCRC     = errors.New("its checksum is wrong")
	errFormat  = errors.New("its format is older than Kafka 0.11's")
	errLength  = errors.New("its length is wrong")
	errCut     = errors.New("it is cut off")
	errRecords = errors.New("its records are malformed")
)

// Batch is what one fetch returned.
type Batch struct {
	Records []delivery.Record
	// Next is the offset to fetch next. It may lie beyond the last record:
	// compaction and transactions leave offsets without records.
	Next int64
	// HighWatermark is the end of what can be read: of the log as far as it is replicated,
	// and before the first record of a transaction that is still open.
	HighWatermark int64
	// LogEnd is the end of the log, as far as it is replicated. What lies between HighWatermark
	// and LogEnd waits for a transaction.
	LogEnd int64
	// LeaderEpoch is that of the last batch of records before Next, when this fetch brought
	// one; else it is -1.
	LeaderEpoch int32
	// TopicID is of the log that was read.
	TopicID TopicID
	// Throttled means that a quota of the brokers holds this client back, and that the log was
	// not read: Records is empty, Next is the offset asked for, and HighWatermark and LogEnd
	// are those of the answer before. Records from Next on may exist; fetch again.
	Throttled bool

	headers [][]byte // of each record, encoded
}

// Headers returns all headers of record i. Those that record.Meta knows are in
// its Meta already.
func (b *Batch) Headers(i int) []delivery.Header {
	var headers []delivery.Header
	if i < len(b.headers) {
		_ = eachHeader(b.headers[i], func(key string, value []byte) {
			headers = append(headers, delivery.Header{Key: string([]byte(key)), Value: value})
		})
	}
	return headers
}

// decoder holds memory for the records of a fetch, which is used again for the
// next.
type decoder struct {
	aborted abortedTxns
	plain   []byte // decompressed batches
	records []delivery.Record
	headers [][]byte
}

// decode returns the records in data, a sequence of record batches of which
// the last may be cut off, from offset from on, without those of transactions in d.aborted.
// The records share memory with data and with d.
//
// When a batch is corrupt, those before it are returned; when there are none, the error
// is a *CorruptError. Nothing that the batch says of itself is believed before its checksum
// is right.
func (d *decoder) decode(data []byte, from int64) (Batch, error) {
	d.plain, d.records, d.headers = d.plain[:0], d.records[:0], d.headers[:0]
	next, epoch := from, int32(-1)
	for rest := data; len(rest) > 0; {
		h, err := cut(rest)
		if errors.Is(err, errCut) && len(rest) < len(data) {
			break // by the size of the fetch, which the first one never is
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

// cut returns the batch at the beginning of data.
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

// following returns where to go on after a batch at offset that says nothing
// reliable of its end: at the batch behind it, or else at the next offset.
func following(rest []byte, offset int64) int64 {
	if h, err := cut(rest); err == nil && h.check() == nil && h.base() > offset {
		return h.base()
	}
	return offset + 1
}

// damaged reports whether err may be of the way from the disk to here, so that
// another fetch may return something else.
func damaged(err error) bool {
	return errors.Is(err, errCRC) || errors.Is(err, errFormat) || errors.Is(err, errLength) || errors.Is(err, errCut)
}

func (d *decoder) corrupt(offset, next int64, epoch int32, cause error) (Batch, error) {
	if len(d.records) > 0 {
		return Batch{Records: d.records, Next: offset, LeaderEpoch: epoch, headers: d.headers}, nil
	}
	return Batch{}, &CorruptError{Offset: offset, Next: next, Cause: cause}
}

// batchHeader is a whole batch; the name says what is read from it.
type batchHeader []byte

func (h batchHeader) base() int64 { return int64(binary.BigEndian.Uint64(h[batchAtOffset:])) }

// check reports whether the bytes are those that the producer sent. The base
// offset and the length are not covered: the broker sets them.
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

// next is the offset after the batch's last record, whether that still exists or not.
func (h batchHeader) next() int64 {
	return h.base() + int64(int32(binary.BigEndian.Uint32(h[batchAtLastDelta:]))) + 1
}

// epoch is that of the leader that took the batch.
func (h batchHeader) epoch() int32 { return int32(binary.BigEndian.Uint32(h[batchAtEpoch:])) }

func (h batchHeader) producer() int64 { return int64(binary.BigEndian.Uint64(h[batchAtProducer:])) }

func (h batchHeader) attributes() uint16 { return binary.BigEndian.Uint16(h[batchAtAttributes:]) }

// batch adds the records of h, which is checked, from offset from on.
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
		// Growing moved d.plain elsewhere; the records of earlier batches keep what
		// they point to.
		d.plain, body = plain, plain[start:]
	}
	n := len(d.records)
	if err := d.all(h, body, from); err != nil {
		d.records, d.headers = d.records[:n], d.headers[:n]
		return err
	}
	return nil
}

// all adds the records in body from offset from on.
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

// eachHeader calls f with every header in b. The key is valid until f returns.
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

// fieldReader reads the fields of a record. Once bad it stays bad and returns zeros.
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

// bytes returns a field that may be null. Its capacity ends with it.
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

package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
)

// Outgoing is a record to produce.
type Outgoing struct {
	Partition int
	Key       []byte // nil for none
	Value     []byte // nil is a tombstone
	Headers   []delivery.Header
	Time      time.Time // zero means the time of sending
}

// size is the approximate uncompressed size of o in a batch.
func (o *Outgoing) size() int {
	n := maxRecordOverhead + len(o.Key) + len(o.Value)
	for i := range o.Headers {
		n += 2*binary.MaxVarintLen32 + len(o.Headers[i].Key) + len(o.Headers[i].Value)
	}
	return n
}

// maxRecordOverhead is the size of everything but key, value and headers:
// length, attributes, two deltas, two lengths and a count.
const maxRecordOverhead = 1 + 6*binary.MaxVarintLen32

// Field offsets of a record batch, version 2 ("magic").
const (
	batchAtOffset     = 0  // int64, 0 from producers
	batchAtLength     = 8  // int32, of the bytes after it
	batchAtEpoch      = 12 // int32, of the leader
	batchAtMagic      = 16 // int8
	batchAtCRC        = 17 // uint32, CRC-32C of the bytes after it
	batchAtAttributes = 21 // int16
	batchAtLastDelta  = 23 // int32, offset of the last record minus that of the first
	batchAtFirstTime  = 27 // int64, milliseconds
	batchAtMaxTime    = 35 // int64, milliseconds
	batchAtProducer   = 43 // int64 id, int16 epoch, int32 sequence: all -1 without idempotence
	batchAtCount      = 57 // int32
	batchHeaderSize   = 61

	batchMagic = 2

	attrCodec         = 0x07
	attrLogAppendTime = 0x08
	attrTransaction   = 0x10
	attrControl       = 0x20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encoder builds record batches and keeps scratch memory between them.
type encoder struct {
	codec codec
	raw   []byte // records before compression
}

// appendBatch appends a batch of records to dst. records must not be empty. Every byte is
// copied once. now is the time of records without one.
func (e *encoder) appendBatch(dst []byte, records []entry, now time.Time) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, batchHeaderSize)...)
	first, last := timeRange(records, now.UnixMilli())
	if e.codec.id == codecNone {
		dst = appendRecords(dst, records, first, now.UnixMilli())
	} else {
		e.raw = appendRecords(e.raw[:0], records, first, now.UnixMilli())
		dst = e.codec.append(dst, e.raw)
	}

	b := dst[start:]
	be := binary.BigEndian
	be.PutUint32(b[batchAtLength:], uint32(len(b)-batchAtEpoch))
	be.PutUint32(b[batchAtEpoch:], ^uint32(0))
	b[batchAtMagic] = batchMagic
	be.PutUint16(b[batchAtAttributes:], uint16(e.codec.id))
	be.PutUint32(b[batchAtLastDelta:], uint32(len(records)-1))
	be.PutUint64(b[batchAtFirstTime:], uint64(first))
	be.PutUint64(b[batchAtMaxTime:], uint64(last))
	for i := batchAtProducer; i < batchAtCount; i++ {
		b[i] = 0xff
	}
	be.PutUint32(b[batchAtCount:], uint32(len(records)))
	be.PutUint32(b[batchAtCRC:], crc32.Checksum(b[batchAtAttributes:], castagnoli))
	return dst
}

// timeRange returns the time of the first record and the latest time of all, in
// milliseconds.
func timeRange(records []entry, now int64) (first, last int64) {
	first = records[0].out.millis(now)
	last = first
	for i := range records {
		last = max(last, records[i].out.millis(now))
	}
	return first, last
}

func (o *Outgoing) millis(now int64) int64 {
	if o.Time.IsZero() {
		return now
	}
	return o.Time.UnixMilli()
}

func appendRecords(dst []byte, records []entry, firstTime, now int64) []byte {
	for i := range records {
		o := records[i].out
		timeDelta := o.millis(now) - firstTime
		body := 1 + varintSize(timeDelta) + varintSize(int64(i)) + bytesSize(o.Key, o.Key == nil) +
			bytesSize(o.Value, o.Value == nil) + varintSize(int64(len(o.Headers)))
		for _, h := range o.Headers {
			body += varintSize(int64(len(h.Key))) + len(h.Key) + bytesSize(h.Value, h.Value == nil)
		}
		dst = binary.AppendVarint(dst, int64(body))
		dst = append(dst, 0) // attributes: none are defined
		dst = binary.AppendVarint(dst, timeDelta)
		dst = binary.AppendVarint(dst, int64(i))
		dst = appendNullable(dst, o.Key)
		dst = appendNullable(dst, o.Value)
		dst = binary.AppendVarint(dst, int64(len(o.Headers)))
		for _, h := range o.Headers {
			dst = binary.AppendVarint(dst, int64(len(h.Key)))
			dst = append(dst, h.Key...)
			dst = appendNullable(dst, h.Value)
		}
	}
	return dst
}

func appendNullable(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(b)))
	return append(dst, b...)
}

// bytesSize is the number of bytes that appendNullable appends for b.
func bytesSize(b []byte, null bool) int {
	if null {
		return 1
	}
	return varintSize(int64(len(b))) + len(b)
}

// varintSize is the size of v in zigzag encoding.
func varintSize(v int64) int {
	u := uint64(v<<1) ^ uint64(v>>63)
	n := 1
	for ; u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

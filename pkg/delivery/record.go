package delivery

import (
	"encoding/binary"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/metaflowys/metaflow-server/schema"
)

// Hash is the content hash of a record's value: XXH3-128, big-endian.
type Hash [16]byte

// HashOf returns the content hash of value.
func HashOf(value []byte) Hash {
	return Hash(xxh3.Hash128(value).Bytes())
}

// Header is one Kafka record header.
type Header struct {
	Key   string
	Value []byte
}

// Meta is what the headers of a record say. The zero value says nothing.
type Meta struct {
	Agent    string    // id of the delivering agent, empty when unknown
	Received time.Time // time of first receipt, by an agent or a gateway; zero when unknown
	Hash     Hash      // content hash, of the record before its items were judged by time; see HasHash
	HasHash  bool      // false for records written by other programs
	Resend   bool      // the sender may have delivered these spans before
}

// Headers returns the headers that carry m.
func (m Meta) Headers() []Header {
	h := make([]Header, 0, 4)
	if m.HasHash {
		h = append(h, Header{schema.HeaderHash, append([]byte(nil), m.Hash[:]...)})
	}
	if !m.Received.IsZero() {
		h = append(h, Header{schema.HeaderReceived, binary.BigEndian.AppendUint64(nil, uint64(m.Received.UnixNano()))})
	}
	if m.Agent != "" {
		h = append(h, Header{schema.HeaderAgent, []byte(m.Agent)})
	}
	if m.Resend {
		h = append(h, Header{schema.HeaderResend, []byte("1")})
	}
	return h
}

// Set takes one header into m. Unknown keys and values of a wrong size are
// ignored: a header never makes a record unreadable.
func (m *Meta) Set(key string, value []byte) {
	switch key {
	case schema.HeaderHash:
		if len(value) == len(m.Hash) {
			m.Hash, m.HasHash = Hash(value), true
		}
	case schema.HeaderReceived:
		if len(value) == 8 {
			m.Received = time.Unix(0, int64(binary.BigEndian.Uint64(value)))
		}
	case schema.HeaderAgent:
		m.Agent = string(value)
	case schema.HeaderResend:
		m.Resend = string(value) == "1"
	}
}

// Record is one record of a partition as the writer reads it.
type Record struct {
	Offset int64
	Time   time.Time // Kafka's timestamp of the record, to the millisecond
	Key    []byte    // nil when there is none; owned as Value is
	Value  []byte    // of the spans topic an OTLP ExportTraceServiceRequest, nil for a tombstone; owned by the fetch that returned it
	Meta   Meta
}

// ContentHash returns the hash from the headers, or computes it.
func (r *Record) ContentHash() Hash {
	if r.Meta.HasHash {
		return r.Meta.Hash
	}
	return HashOf(r.Value)
}

// FirstReceipt returns the time by which the items of the record are judged: that of its header, or
// else Kafka's timestamp. It is a function of the record alone. ok is false when neither is
// believable; then nothing can be judged by time.
func (r *Record) FirstReceipt() (t time.Time, ok bool) {
	for _, t := range []time.Time{r.Meta.Received, r.Time} {
		if Believable(t) {
			return t, true
		}
	}
	return time.Time{}, false
}

// Times of receipt that no clock can have shown: programs that leave a timestamp at 0 or -1, and those that
// mistake its unit, end up outside.
var (
	earliest = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Believable reports whether t can be a time of receipt.
func Believable(t time.Time) bool { return t.After(earliest) && t.Before(latest) }

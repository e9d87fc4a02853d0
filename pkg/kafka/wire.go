package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go/protocol"
)

// The library lets a message do its own exchange on a connection that the library has
// chosen, opened and authenticated (protocol.RawExchanger). The functions below encode
// and decode these messages.

// maxResponse bounds the size of a response. A broker may legally return one batch larger
// than requested; no known broker accepts batches beyond this bound.
const maxResponse = 256 << 20

// correlation is the correlation id of every request. A connection carries one request at
// a time.
const correlation = 1

var errAnswer = errors.New("malformed response from the broker")

// appendHeader begins a request of a version without the flexible encoding. exchange
// fills in the length.
func appendHeader(b []byte, key protocol.ApiKey, version uint16) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(key))
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint32(b, correlation)
	return appendString(b, clientID)
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// appendFlexibleHeader begins a request of a version with the flexible encoding: its
// lengths are varints, and every structure ends with tagged fields. This package sends
// none.
func appendFlexibleHeader(b []byte, key protocol.ApiKey, version uint16) []byte {
	return appendNoTags(appendHeader(b, key, version))
}

func appendNoTags(b []byte) []byte { return append(b, 0) }

// appendCompactLength appends the number of elements or bytes that follow.
func appendCompactLength(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)+1) }

func appendCompactString(b []byte, s string) []byte {
	return append(appendCompactLength(b, len(s)), s...)
}

func appendCompactNull(b []byte) []byte { return append(b, 0) }

// correlationSize is the size of a response before its body.
const correlationSize = 4

// exchange sends a request and returns the response, in buf if that is large enough. The
// body begins at correlationSize. exchange fails when ctx ends.
func exchange(ctx context.Context, rw io.ReadWriter, request, buf []byte) (answer []byte, err error) {
	if conn, ok := rw.(interface{ SetDeadline(t time.Time) error }); ok {
		// A caller that gave up must not leave a goroutine waiting for a response.
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer func() {
			if !stop() { // the deadline may fire later, so the connection is unusable
				answer, err = nil, context.Cause(ctx)
			}
		}()
	}
	binary.BigEndian.PutUint32(request, uint32(len(request)-4))
	if _, err := rw.Write(request); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(rw, size[:]); err != nil {
		return nil, unexpected(err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxResponse {
		return nil, fmt.Errorf("response of %d bytes is too large", n)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(rw, buf); err != nil {
		return nil, unexpected(err)
	}
	if n < correlationSize || binary.BigEndian.Uint32(buf) != correlation {
		return nil, errAnswer
	}
	return buf, nil
}

// unexpected turns io.EOF, which means a clean end elsewhere, into an error.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// answerReader reads the fields of a response. After the first error it is bad and
// returns zeros.
type answerReader struct {
	b   []byte
	bad bool
}

func (r *answerReader) err() error {
	if r.bad {
		return errAnswer
	}
	return nil
}

func (r *answerReader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.bad = nil, true
		return make([]byte, 16)[:min(max(n, 0), 16)]
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *answerReader) int16() int16 { return int16(binary.BigEndian.Uint16(r.take(2))) }
func (r *answerReader) int32() int32 { return int32(binary.BigEndian.Uint32(r.take(4))) }
func (r *answerReader) int64() int64 { return int64(binary.BigEndian.Uint64(r.take(8))) }

// bytes returns nil for null.
func (r *answerReader) bytes() []byte {
	n := int(r.int32())
	if n < 0 {
		return nil
	}
	return r.take(n)
}

func (r *answerReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

// compactLength returns -1 for null. The result never exceeds the remaining bytes, so the
// size of the response bounds a loop over it.
func (r *answerReader) compactLength() int {
	n := r.uvarint()
	if n > uint64(len(r.b))+1 {
		r.b, r.bad = nil, true
		return 0
	}
	return int(n) - 1
}

// length returns the number of elements of an array, bounded like compactLength.
func (r *answerReader) length(flexible bool) int {
	if flexible {
		return r.compactLength()
	}
	n := int(r.int32())
	if n > len(r.b) {
		r.b, r.bad = nil, true
		return 0
	}
	return n
}

// text reads a string. Null reads as the empty string.
func (r *answerReader) text(flexible bool) string {
	n := 0
	if flexible {
		n = r.compactLength()
	} else {
		n = int(r.int16())
	}
	return string(r.take(max(n, 0)))
}

func (r *answerReader) topicID() TopicID { return TopicID(r.take(len(TopicID{}))) }

// tags skips the tagged fields at the end of a structure.
func (r *answerReader) tags(flexible bool) {
	if !flexible {
		return
	}
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		r.uvarint()
		r.take(int(min(r.uvarint(), maxResponse)))
	}
}

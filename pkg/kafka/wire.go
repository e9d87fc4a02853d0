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

// The library lets a message do its own exchange on a connection that it has
// chosen, opened and logged in (protocol.RawExchanger). The messages that
// do so are built and read with what is below.

// maxResponse bounds what a broker may make us read. One batch larger than
// asked for is legal, and brokers that take batches of more than this are not known.
const maxResponse = 256 << 20

// correlation is in every request. A connection carries one at a time.
const correlation = 1

var errAnswer = errors.New("the broker's answer is malformed")

// appendHeader begins a request of a version that is not "flexible". exchange
// fills in its length.
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

// correlationSize is the part of an answer before its body.
const correlationSize = 4

// exchange sends a request and returns the answer, in buf when that is large
// enough. Its body begins at correlationSize. exchange gives up when ctx ends.
func exchange(ctx context.Context, rw io.ReadWriter, request, buf []byte) (answer []byte, err error) {
	if conn, ok := rw.(interface{ SetDeadline(t time.Time) error }); ok {
		// A caller that gave up must not leave a goroutine waiting for an answer.
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer func() {
			if !stop() { // the deadline may be set only later, so the connection is spoilt
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
		return nil, fmt.Errorf("an answer of %d bytes is too large", n)
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

// unexpected makes the end of a connection an error of its own: io.EOF means
// something good elsewhere.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// answerReader reads the fields of an answer. Once bad it stays bad and returns zeros.
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
		return make([]byte, 8)[:min(max(n, 0), 8)]
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *answerReader) int16() int16 { return int16(binary.BigEndian.Uint16(r.take(2))) }
func (r *answerReader) int32() int32 { return int32(binary.BigEndian.Uint32(r.take(4))) }
func (r *answerReader) int64() int64 { return int64(binary.BigEndian.Uint64(r.take(8))) }

func (r *answerReader) string() string { return string(r.take(int(r.int16()))) }

// bytes returns nil for null.
func (r *answerReader) bytes() []byte {
	n := int(r.int32())
	if n < 0 {
		return nil
	}
	return r.take(n)
}

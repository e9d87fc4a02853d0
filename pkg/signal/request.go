package signal

import (
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Request is one request as a receiver hands it to its consumer.
type Request struct {
	// Body holds the protobuf bytes, decompressed and not checked. It belongs to
	// the consumer until its method returns or calls ReleaseBody, and to other
	// requests afterwards.
	Body []byte
	// Lender takes Body back. It may be nil.
	Lender Lender
	// Agent is the id that the client gave in its metadata, empty when none.
	Agent string
	// Resend means that the client may have delivered the same data before.
	Resend bool
	// Received is the time at which the client took the request from its own
	// sender, zero when it does not say.
	Received time.Time
	// Peer is the client's address, invalid when it is not an IP's.
	Peer netip.AddrPort
}

// Lender lends the memory of a body.
type Lender interface{ ReleaseBody() }

// ReleaseBody gives Body back before the consumer returns, so that its memory can
// serve another request while this one waits.
func (r *Request) ReleaseBody() {
	r.Body = nil
	if r.Lender != nil {
		r.Lender.ReleaseBody()
		r.Lender = nil
	}
}

// Result is what became of a request that was accepted. The zero value is full
// success.
type Result struct {
	Rejected int64  // items that were not stored and must not be sent again
	Message  string // why, or a warning when Rejected is zero
}

// Tags of an answer, whose form is the same for all signals: OTLP's.
const (
	tagPartialSuccess = 1<<3 | Bytes

	tagRejected     = 1<<3 | Varint
	tagErrorMessage = 2<<3 | Bytes
)

// AppendResponse appends r as the answer to a request. Full success is an empty
// message.
func AppendResponse(b []byte, r Result) []byte {
	if r == (Result{}) {
		return b
	}
	text := strings.ToValidUTF8(r.Message, "?")
	var partial []byte
	if r.Rejected != 0 {
		partial = protowire.AppendVarint(append(partial, byte(tagRejected)), uint64(r.Rejected))
	}
	if text != "" {
		partial = append(AppendBytesTag(partial, tagErrorMessage, len(text)), text...)
	}
	return append(AppendBytesTag(b, tagPartialSuccess, len(partial)), partial...)
}

// ReadResponse reads the answer to a request. The error is nil or ErrMalformed.
func ReadResponse(b []byte) (r Result, err error) {
	err = fields(b, func(tag Tag, value []byte) error {
		if tag != tagPartialSuccess {
			return nil
		}
		return fields(value, func(tag Tag, value []byte) error {
			switch tag {
			case tagRejected:
				r.Rejected = int64(Uint64(tag, value))
			case tagErrorMessage:
				r.Message = string(value)
			}
			return nil
		})
	})
	if err != nil || !utf8.ValidString(r.Message) {
		return Result{}, ErrMalformed
	}
	return r, nil
}

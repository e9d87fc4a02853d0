package otlptest

import (
	"fmt"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Raw is a RawCodec with the subtype of OTLP.
const Raw = RawCodec("proto")

// RawCodec is a gRPC codec that sends []byte as it is. A reply is a *[]byte or a message. The codec's value is
// the content-subtype of its requests.
type RawCodec string

// Name returns the content-subtype.
func (c RawCodec) Name() string { return string(c) }

// Marshal returns v, which is a []byte.
func (RawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil } //nolint:forcetypeassert // the contract

// Unmarshal sets v to a copy of b, or decodes b.
func (RawCodec) Unmarshal(b []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = append([]byte(nil), b...)
		return nil
	case proto.Message:
		return proto.Unmarshal(b, v)
	}
	return fmt.Errorf("a reply cannot be a %T", v)
}

// Precompressed is a gRPC compressor for messages that are compressed already. Its value is the name of their
// encoding.
type Precompressed string

// Type returns the name of the encoding.
func (p Precompressed) Type() string { return string(p) }

// Do writes b as it is.
func (Precompressed) Do(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// RetryDelay returns how long a server asks to wait before the request is sent again; ok is false if err does not
// ask.
func RetryDelay(err error) (delay time.Duration, ok bool) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

package rpc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

// message receives the bytes of one export.
type message struct {
	server  *Server
	call    *call
	body    *[]byte          // nil until received, if refused, and once released
	refused inflight.Refusal // set if the actual size did not fit
}

// take copies data into one buffer, because gRPC holds it in many small ones and reclaims
// them when take returns. gRPC looks for a second message after the first and fails the
// call if there is one: then it calls take again.
func (m *message) take(data mem.BufferSlice) {
	if m.body != nil || m.refused != "" {
		return
	}
	size := data.Len()
	if m.refused = m.call.resize(int64(size)); m.refused != "" {
		return
	}
	if size >= largeCopy {
		m.server.copies <- struct{}{}
		defer func() { <-m.server.copies }()
	}
	m.body = m.server.buffers.Get(size)
	data.CopyTo(*m.body)
}

// largeCopy is the size from which at most one request per processor is copied at a time:
// a request being copied takes twice its size and counts once.
const largeCopy = 256 << 10

// ReleaseBody implements signal.Lender.
func (m *message) ReleaseBody() {
	m.server.buffers.Put(m.body)
	m.body = nil
}

// release returns everything. Without reuse the body is not pooled, because another
// goroutine may still read it.
func (m *message) release(reuse bool) {
	m.call.release()
	if m.body != nil && reuse {
		m.ReleaseBody()
	}
}

// codec encodes protobuf, except for the requests and responses of exports, which stay
// bytes. It decodes other requests within bounds.
type codec struct {
	encoding.CodecV2
}

// response is the response to an export, as bytes.
type response []byte

func newCodec() codec {
	return codec{encoding.GetCodecV2(proto.Name)}
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *message:
		m.take(data)
		return nil
	case *bounded:
		return m.take(data)
	default:
		return c.CodecV2.Unmarshal(data, v)
	}
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case response:
		return mem.BufferSlice{mem.SliceBuffer(m)}, nil
	case *answer:
		return m.encode()
	default:
		return c.CodecV2.Marshal(v)
	}
}

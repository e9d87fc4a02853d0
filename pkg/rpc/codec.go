package rpc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

// message receives the bytes of one Export.
type message struct {
	server  *Server
	call    *call
	body    *[]byte          // nil until received, or when refused
	refused inflight.Refusal // set when the size, once known, did not fit
}

// take copies data, which gRPC holds in many small buffers and reclaims when
// this returns, into one. gRPC looks for a second message after the first, and
// fails the call when there is one: then take is called again.
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

// largeCopy is from where on only so many requests are copied at a time as there are processors:
// a request that is being copied is held twice, and counted once.
const largeCopy = 256 << 10

// release gives everything back. The body is kept from reuse when somebody may
// still read it.
func (m *message) release(reuse bool) {
	m.call.release()
	if m.body != nil && reuse {
		m.server.buffers.Put(m.body)
	}
}

// codec is protobuf for every message but an Export's request and answer, which stay bytes. Other requests are
// decoded within bounds.
type codec struct {
	encoding.CodecV2
}

// response is the answer to an Export, as bytes.
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
	if r, ok := v.(response); ok {
		return mem.BufferSlice{mem.SliceBuffer(r)}, nil
	}
	return c.CodecV2.Marshal(v)
}

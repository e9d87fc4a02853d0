package rpc

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// maxReportBytes is several times an agent's largest message, a report of pods.
	maxReportBytes = 4 << 20
	// maxConnectBytes is several times a registration with many addresses.
	maxConnectBytes = 64 << 10
	// maxSmallBytes bounds requests for health and reflection, which contain one name.
	maxSmallBytes = 4 << 10
	// maxDecodedBytes bounds the memory of a decoded message. A report of a megabyte
	// takes two to eight times its length.
	maxDecodedBytes = 16 << 20
	// decodedMessageBytes and decodedValueBytes are protobuf's allocations for a nested
	// message, and for a string or bytes field besides its content, including growing
	// slices.
	decodedMessageBytes = 320
	decodedValueBytes   = 48
)

// maxOtherBytes returns the maximum message length of a method that is not an export.
func maxOtherBytes(method string) int {
	switch method {
	case agentv1.ResourceService_Report_FullMethodName:
		return maxReportBytes
	case agentv1.ControlService_Connect_FullMethodName, agentv1.ControlService_Check_FullMethodName:
		return maxConnectBytes
	default:
		return maxSmallBytes
	}
}

// agentServices is the common prefix of all methods that only agents call.
var agentServices = "/" + strings.TrimSuffix(agentv1.ResourceService_ServiceDesc.ServiceName, "ResourceService")

// registrar registers services whose messages are bounded before they are decoded.
type registrar struct{ *grpc.Server }

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	bound := *desc
	bound.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		next := m.Handler
		m.Handler = func(srv any, ctx context.Context, receive func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			call := callOf(ctx)
			if err := call.hold(ctx); err != nil {
				return nil, err
			}
			defer call.release()
			resp, err := next(srv, ctx, func(v any) error { return call.receiveBounded(receive, v) }, interceptor)
			if err != nil {
				return nil, call.cause(err)
			}
			return call.conn.answer(ctx, resp)
		}
		bound.Methods[i] = m
	}
	r.Server.RegisterService(&bound, service)
}

// bounded receives a message of a service that is not an export.
type bounded struct {
	call    *call
	into    any
	refused error // a status; gRPC would turn a codec's error into an internal one
}

// receiveBounded receives a message within the bounds into v.
func (k *call) receiveBounded(receive func(any) error, v any) error {
	b := &bounded{call: k, into: v}
	if err := receive(b); err != nil {
		return err
	}
	return b.refused
}

// take decodes data if the result is within the bounds.
func (b *bounded) take(data mem.BufferSlice) error {
	if limit := b.call.maxBytes(); data.Len() > limit {
		b.refused = tooLong(data.Len(), limit)
		return nil
	}
	m, ok := b.into.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", b.into)
	}
	text := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer text.Free()
	size := decodedBytes(m.ProtoReflect().Descriptor(), text.ReadOnlyData(), 0)
	if size > maxDecodedBytes {
		b.refused = status.Errorf(codes.ResourceExhausted, "a message that takes %d bytes once it is decoded is larger than the %d allowed", size, maxDecodedBytes)
		return nil
	}
	if why := b.call.decoded(int64(size)); why != "" {
		b.refused = b.call.refusal(why)
		return nil
	}
	return proto.Unmarshal(text.ReadOnlyData(), m)
}

func tooLong(length, limit int) error {
	return status.Errorf(codes.ResourceExhausted, "a message of %d bytes is larger than the %d allowed", length, limit)
}

// maxNesting is deeper than any received message. Deeper messages count as text.
const maxNesting = 16

// decodedBytes estimates the memory of a message from its bytes, without allocating. It
// stops at the first malformed byte.
func decodedBytes(d protoreflect.MessageDescriptor, b []byte, depth int) int {
	size := decodedMessageBytes
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return size
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return size
		}
		field := d.Fields().ByNumber(number)
		switch {
		case kind != protowire.BytesType || field == nil:
			size += 2 * (n + protowire.SizeTag(number)) // protobuf keeps the bytes of an unknown field
		case field.Message() != nil && depth < maxNesting:
			nested, _ := protowire.ConsumeBytes(b[:n])
			size += decodedBytes(field.Message(), nested, depth+1)
		case field.IsPacked():
			size += decodedValueBytes + 8*n
		default:
			size += decodedValueBytes + n
		}
		b = b[n:]
	}
	return size
}

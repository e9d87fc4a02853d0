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
	// maxReportBytes is some times the largest message that an agent sends, a report of pods.
	maxReportBytes = 4 << 20
	// maxConnectBytes is some times a registration with many addresses.
	maxConnectBytes = 64 << 10
	// maxSmallBytes is for health and reflection, whose requests hold one name.
	maxSmallBytes = 4 << 10
	// maxDecodedBytes bounds what a message takes in memory once it is decoded. A report of a
	// megabyte takes two to eight times its length.
	maxDecodedBytes = 16 << 20
	// decodedMessageBytes and decodedValueBytes are what protobuf allocates for a nested message, and
	// for a string or bytes beside their content, slices that grow included.
	decodedMessageBytes = 320
	decodedValueBytes   = 48
)

// maxOtherBytes returns how long a message of a method that takes no spans or flows may be.
func maxOtherBytes(method string) int {
	switch method {
	case agentv1.ResourceService_Report_FullMethodName:
		return maxReportBytes
	case agentv1.ControlService_Connect_FullMethodName:
		return maxConnectBytes
	default:
		return maxSmallBytes
	}
}

// agentServices is what the names of all methods begin with that only agents call.
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
			return resp, call.cause(err)
		}
		bound.Methods[i] = m
	}
	r.Server.RegisterService(&bound, service)
}

// bounded receives a message of a service that takes no spans or flows.
type bounded struct {
	call    *call
	into    any
	refused error // a status; gRPC would make an internal error of what a codec returns
}

// receiveBounded receives into v what fits.
func (k *call) receiveBounded(receive func(any) error, v any) error {
	b := &bounded{call: k, into: v}
	if err := receive(b); err != nil {
		return err
	}
	return b.refused
}

// take decodes data once it is known that the result fits.
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

// maxNesting is deeper than any message that is received. What is nested deeper counts as text.
const maxNesting = 16

// decodedBytes estimates what a message takes in memory from its bytes, and allocates nothing. It stops at the
// first byte that is no protobuf.
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
			size += 2 * (n + protowire.SizeTag(number)) // of an unknown field the bytes are kept
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

package upstream

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema"
)

// ExportOptions are the options of one request.
type ExportOptions struct {
	Resend   bool      // a server may have stored the request already
	Received time.Time // when the agent received the request; zero if unknown
	Compress bool      // compress with zstd
}

// Export sends body, a request of sig, to one of the replicas and returns nil
// once it is stored. It tries once, for at most Config.Timeout, and fails at
// once if no connection is up. It does not change body, and does not read it
// after it returns.
//
// The class of the error (pkg/fault) is Rejected if the server refused the data
// itself, Overload if the server asked for a pause (RetryAfter), and Retryable
// otherwise. See also OutcomeUnknown and TooLarge.
func (c *Client) Export(ctx context.Context, sig *signal.Signal, body []byte, opts ExportOptions) (signal.Result, error) {
	start := time.Now()
	m := message{body: body, compressed: opts.Compress}
	var a answer
	err := c.invoke(ctx, sig.Method, &m, &a, opts)
	c.metrics.exported(err, len(body), time.Since(start))
	if err != nil {
		return signal.Result{}, exportError(err, m.handed, len(body))
	}
	return a.Result, nil
}

func (c *Client) invoke(ctx context.Context, method string, m *message, a *answer, opts ExportOptions) error {
	// In these two states gRPC would block. After a failed connection it
	// returns the cause.
	if state := c.state(); state == connectivity.Idle || state == connectivity.Connecting {
		return notReady(state)
	}
	md := c.plain
	if opts.Resend {
		md = c.resend
	}
	if !opts.Received.IsZero() {
		md = md.Copy()
		md.Set(schema.MetadataReceived, strconv.FormatInt(opts.Received.UnixNano(), 10))
	}
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(ctx, md), c.cfg.Timeout)
	defer cancel()
	var call []grpc.CallOption
	if opts.Compress {
		call = []grpc.CallOption{grpc.UseCompressor(compression)}
	}
	return c.conn.Invoke(ctx, method, m, a, call...)
}

// answer receives the answer to one request.
type answer struct{ signal.Result }

// message is one request.
type message struct {
	body       []byte
	compressed bool // gRPC compresses before the call returns
	handed     bool // given to a connection: gRPC encodes after it picked one
}

// chunk is the size of the pieces in which a body is copied. gRPC pools buffers
// of this size and returns each one when it is written.
const chunk = 32 << 10

// encode returns the body as buffers that gRPC may keep. gRPC may write them
// after the call was cancelled, when the caller already reuses the body: the
// server could then take parts of two requests for one. So the buffers are a
// copy, unless only the compressor reads them.
func (m *message) encode() mem.BufferSlice {
	m.handed = true
	if m.compressed {
		return mem.BufferSlice{mem.SliceBuffer(m.body)}
	}
	pool := mem.DefaultBufferPool()
	slice := make(mem.BufferSlice, 0, len(m.body)/chunk+1)
	for rest := m.body; len(rest) > 0; {
		n := min(len(rest), chunk)
		slice = append(slice, mem.Copy(rest[:n], pool))
		rest = rest[n:]
	}
	return slice
}

// codec marshals protobuf messages, except an Export's request, which is bytes
// already.
type codec struct {
	encoding.CodecV2
}

func newCodec() codec {
	return codec{encoding.GetCodecV2(proto.Name)}
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*message); ok {
		return m.encode(), nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) (err error) {
	if a, ok := v.(*answer); ok {
		a.Result, err = signal.ReadResponse(data.Materialize())
		return err
	}
	return c.CodecV2.Unmarshal(data, v)
}

func notReady(state connectivity.State) error {
	return fmt.Errorf("%w: %s", errNotReady, state)
}

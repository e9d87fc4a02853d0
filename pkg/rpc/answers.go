package rpc

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Answers bounds what the clients of Options.Services have asked for and not yet taken.
type Answers interface {
	// Hold counts bytes until release is called. An error refuses them.
	Hold(bytes int) (release func(), err error)
	// GaveUp is called once for each connection that is closed because its client does not
	// take an answer.
	GaveUp()
}

// answer is a message for a client. gRPC queues it for as long as the client's flow control
// says, also after the handler has returned, and then writes and frees its bytes.
type answer struct {
	conn    *conn
	message proto.Message // nil once it is encoded
	size    int
	release func()
	late    *time.Timer // from when gRPC has queued it; guarded by conn.mu
}

// answer counts a message as unread, until the connection has taken it or is closed. It returns
// what gRPC has to send in its place.
func (c *conn) answer(ctx context.Context, v any) (any, error) {
	m, ok := v.(proto.Message)
	if c.server.answers == nil || !ok {
		return v, nil
	}
	_ = grpc.SetSendCompressor(ctx, encoding.Identity) // compressed bytes would be gRPC's own; fails after the first message
	a := &answer{conn: c, message: m, size: proto.Size(m)}
	var err error
	if a.release, err = c.server.answers.Hold(a.size + callBytes); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers == nil {
		a.release()
		return nil, status.Error(codes.Unavailable, "the connection is closed")
	}
	c.answers[a] = struct{}{}
	return a, nil
}

// encode returns the bytes, in a buffer of which gRPC says when it frees it.
func (a *answer) encode() (mem.BufferSlice, error) {
	const noticed = 1<<10 + 1 // gRPC drops smaller buffers without a word
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, max(a.size, noticed)), a.message)
	if err != nil {
		a.taken()
		return nil, err
	}
	a.message = nil
	return mem.BufferSlice{mem.NewBuffer(&b, a)}, nil
}

// Get and Put implement mem.BufferPool. gRPC calls Put when it frees the bytes.
func (a *answer) Get(length int) *[]byte { return mem.DefaultBufferPool().Get(length) }

func (a *answer) Put(*[]byte) { a.taken() }

// queued is called when gRPC has queued the bytes.
func (a *answer) queued() {
	a.conn.mu.Lock()
	defer a.conn.mu.Unlock()
	if _, waits := a.conn.answers[a]; waits {
		a.late = time.AfterFunc(a.conn.server.readTime, a.unread)
	}
}

// taken is called when the answer no longer waits, once or more often.
func (a *answer) taken() {
	a.conn.mu.Lock()
	_, waits := a.conn.answers[a]
	delete(a.conn.answers, a)
	late := a.late
	a.conn.mu.Unlock()
	if !waits {
		return
	}
	if late != nil {
		late.Stop()
	}
	a.release()
}

// unread closes the connection of a client that does not take the answer. gRPC has no other way
// to give up bytes that it has queued.
func (a *answer) unread() {
	c := a.conn
	c.mu.Lock()
	_, waits := c.answers[a]
	c.mu.Unlock()
	if !waits {
		return
	}
	c.givingUp.Do(func() { // others of its answers may be late too
		c.server.log.Warn("a client does not read an answer: its connection is closed",
			slog.String("client", c.RemoteAddr().String()), slog.Int("bytes", a.size), slog.Duration("after", c.server.readTime))
		c.server.answers.GaveUp()
	})
	_ = c.Close()
}

// dropAnswers is called when the connection is closed. gRPC does not free what it has queued for
// its streams then.
func (c *conn) dropAnswers() {
	c.mu.Lock()
	dropped := c.answers
	c.answers = nil
	c.mu.Unlock()
	for a := range dropped {
		if a.late != nil {
			a.late.Stop()
		}
		a.release()
	}
}

// answerStats follows answers into gRPC's queue.
type answerStats struct{}

func (answerStats) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (answerStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (answerStats) HandleConn(context.Context, stats.ConnStats) {}

func (answerStats) HandleRPC(ctx context.Context, event stats.RPCStats) {
	out, ok := event.(*stats.OutPayload)
	if !ok {
		return
	}
	a, ok := out.Payload.(*answer)
	switch {
	case !ok:
	case ctx.Err() != nil: // the stream was reset: gRPC does not free what it gets for it from now on
		a.taken()
	default:
		a.queued()
	}
}

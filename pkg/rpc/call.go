package rpc

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

const (
	// callBytes is what gRPC holds for a call of which nothing but headers has come.
	callBytes   = 8 << 10
	prefixBytes = 5 // of a gRPC message: compressed or not, and the length
)

// call is one call from its headers to its end: what it counts for, and how far its message has come.
type call struct {
	conn      *conn
	method    string
	service   *service       // nil for services that take no spans or flows
	peer      *inflight.Peer // what the call is counted for
	streaming bool           // the client may send any number of messages
	base      int64          // granted beside the message, for headers
	cancel    context.CancelFunc
	deadline  *time.Timer // for the message that is awaited

	// Of the goroutine that reads the connection.
	prefix   [prefixBytes]byte
	have     int // of prefix
	left     int // bytes of the message still to come
	size     int // bytes of it that have come
	frames   int // that they came in
	messages int
	stopped  bool // the call was refused, and what else comes is not looked at

	mu      sync.Mutex
	granted int64
	failure error // why the server gave the call up; a status
	answers answerer
	held    bool // a handler runs, and gives back what is granted when it returns
	settled bool // what was granted is given back
}

// answerer is gRPC's stream, which takes a status at any time. A handler that waits for the rest
// of a message cannot give one: gRPC would answer that the call was cancelled.
type answerer interface {
	WriteStatus(st *status.Status) error
}

type callKey struct{}

// callOf returns the call that a handler serves.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// open admits a call whose headers have come. It runs in the goroutine that reads the connection.
func (c *conn) open(ctx context.Context, info *tap.Info, sig *service) (context.Context, inflight.Refusal) {
	k := &call{conn: c, method: info.FullMethodName, service: sig, streaming: c.server.streaming[info.FullMethodName]}
	var why inflight.Refusal
	if sig != nil {
		k.peer = c.exports
		k.granted, why = k.peer.Enter()
	} else {
		k.peer = c.others
		k.base = callBytes + headerBytes(info)
		if k.granted, why = k.peer.EnterAtMost(k.base); why == "" {
			if why = k.peer.Grow(k.granted, k.base); why == "" {
				k.granted = k.base
			} else {
				k.peer.Leave(k.granted)
			}
		}
	}
	if why != "" {
		return ctx, why
	}
	ctx, k.cancel = context.WithCancel(context.WithValue(ctx, callKey{}, k))
	k.deadline = time.AfterFunc(c.server.cfg.BodyTimeout, k.late)
	stream := c.stream
	c.mu.Lock()
	c.calls[stream] = k
	c.mu.Unlock()
	context.AfterFunc(ctx, func() { // gRPC ends the context of every call
		c.mu.Lock()
		delete(c.calls, stream)
		c.mu.Unlock()
		k.ended()
	})
	return ctx, ""
}

func headerBytes(info *tap.Info) (n int64) {
	for name, values := range info.Header {
		for _, v := range values {
			n += int64(len(name) + len(v))
		}
	}
	return n
}

// late gives up a call whose message does not come.
func (k *call) late() {
	k.conn.server.lateBodies.Inc()
	k.fail(status.Errorf(codes.DeadlineExceeded, "the request did not arrive within %s", k.conn.server.cfg.BodyTimeout))
}

// fail ends the call with err, a status.
func (k *call) fail(err error) {
	k.mu.Lock()
	first := k.failure == nil
	if first {
		k.failure = err
	}
	answers := k.answers
	k.mu.Unlock()
	if first && answers != nil {
		_ = answers.WriteStatus(status.Convert(err)) // fails only when the stream has ended
	}
	k.cancel()
}

// cause is err, or the reason when it was the server that gave the call up.
func (k *call) cause(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.failure != nil {
		return k.failure
	}
	return err
}

// receive follows the bytes of the call's messages.
func (k *call) receive(p []byte) {
	if k.stopped {
		return
	}
	k.frames++
	k.size += len(p)
	for len(p) > 0 && !k.stopped {
		if k.left > 0 {
			n := min(len(p), k.left)
			p = p[n:]
			if k.left -= n; k.left == 0 {
				k.complete()
			}
			continue
		}
		n := copy(k.prefix[k.have:], p)
		p = p[n:]
		if k.have += n; k.have == prefixBytes {
			k.have = 0
			k.announced(binary.BigEndian.Uint32(k.prefix[1:]))
		}
	}
}

// announced charges a message of which only the length has come.
func (k *call) announced(length uint32) {
	s := k.conn.server
	k.messages++
	switch {
	case k.messages > 1 && !k.streaming:
		k.stop(status.Error(codes.InvalidArgument, "a second message in a call that takes one"))
		return
	case int64(length) > s.cfg.MaxRequestBytes:
		k.stopped = true // gRPC refuses it, and reads nothing of it
		return
	case k.service == nil && k.prefix[0] != 0:
		k.stop(status.Error(codes.Unimplemented, "compressed messages are taken by the export methods only"))
		return
	case k.service == nil && int64(length) > int64(k.maxBytes()):
		k.stop(tooLong(int(length), k.maxBytes()))
		return
	case k.messages > 1:
		k.deadline.Reset(s.cfg.BodyTimeout)
	}
	if why := k.charge(int64(length)); why != "" {
		k.stop(k.refusal(why))
		return
	}
	if k.left = int(length); k.left == 0 {
		k.complete()
	}
}

func (k *call) stop(err error) {
	k.stopped = true
	k.fail(err)
}

// charge has the budget grant what a message of this length takes while it arrives. What a
// compressed one takes afterwards is known when it is decompressed; the estimate stands until then.
func (k *call) charge(length int64) (why inflight.Refusal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.settled {
		return ""
	}
	compressed := k.prefix[0] != 0
	size := k.base + length
	switch {
	case k.service != nil && !compressed:
		why = k.peer.Resize(k.granted, size)
	case k.service != nil && size <= k.granted:
		return ""
	default:
		why = k.peer.Grow(k.granted, size)
	}
	if why == "" {
		k.granted = size
	}
	return why
}

// maxBytes is how long a message may be of a call that takes no spans or flows.
func (k *call) maxBytes() int { return maxOtherBytes(k.method) }

// decoded charges what a message of a call that takes no spans or flows takes once it is decoded. The
// largest one of the call counts until its end.
func (k *call) decoded(size int64) (why inflight.Refusal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	size += k.base
	if k.settled || size <= k.granted {
		return ""
	}
	if why = k.peer.Grow(k.granted, size); why == "" {
		k.granted = size
	}
	return why
}

// resize is for the handler, which knows how large its request is.
func (k *call) resize(size int64) (why inflight.Refusal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if why = k.peer.Resize(k.granted, size); why == "" {
		k.granted = size
	}
	return why
}

// refusal is what the client is told when a bound was reached.
func (k *call) refusal(why inflight.Refusal) error {
	if k.service != nil {
		return k.service.refused(why)
	}
	return k.conn.server.refusedOther(why)
}

// complete runs when the last byte of a message has come.
func (k *call) complete() {
	k.deadline.Stop()
	k.size, k.frames = 0, 0
}

func (k *call) tooManyFrames() bool {
	return k.frames > tinyFrames && k.size < k.frames*tinyFrameBytes
}

// hold keeps what is granted until release. When it returns an error the call has ended, and must
// not be served.
func (k *call) hold(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return k.failure
	}
	if k.settled {
		return status.FromContextError(context.Canceled).Err()
	}
	k.held = true
	k.answers, _ = grpc.ServerTransportStreamFromContext(ctx).(answerer)
	return nil
}

// release gives back what is granted, after hold.
func (k *call) release() {
	k.mu.Lock()
	k.held = false
	k.mu.Unlock()
	k.leave()
}

// ended runs when the context of the call has ended.
func (k *call) ended() {
	k.deadline.Stop()
	k.mu.Lock()
	held := k.held
	k.mu.Unlock()
	if !held {
		k.leave()
	}
}

func (k *call) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.settled {
		k.settled = true
		k.peer.Leave(k.granted)
	}
}

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
	// callBytes is gRPC's memory for a call of which only the headers have arrived.
	callBytes   = 8 << 10
	prefixBytes = 5 // of a gRPC message: the compression flag and the length
)

// call tracks one call from its headers to its end: its share of the budget and the
// progress of its message.
type call struct {
	conn      *conn
	method    string
	service   *service       // nil for services that are not exports
	peer      *inflight.Peer // the peer that the call counts for
	streaming bool           // the client may send any number of messages
	base      int64          // granted besides the message, for headers
	cancel    context.CancelFunc
	deadline  *time.Timer // for the expected message

	// Owned by the goroutine that reads the connection.
	prefix   [prefixBytes]byte
	have     int // of prefix
	left     int // bytes of the message still to arrive
	size     int // bytes of it that have arrived
	frames   int // frames of those bytes
	messages int
	stopped  bool // the call was refused; further bytes are ignored

	mu      sync.Mutex
	granted int64
	failure error // why the server ended the call; a status
	answers answerer
	held    bool // a handler is running and returns the grant when it ends
	settled bool // the grant was returned
}

// answerer is gRPC's stream, which accepts a status at any time. A handler that waits for
// the rest of a message cannot send one: gRPC would report the call as canceled.
type answerer interface {
	WriteStatus(st *status.Status) error
}

type callKey struct{}

// callOf returns the call that a handler serves.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// open admits a call whose headers have arrived. It runs in the goroutine that reads the
// connection.
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

// late ends a call whose message does not arrive in time.
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
		_ = answers.WriteStatus(status.Convert(err)) // fails only if the stream has ended
	}
	k.cancel()
}

// cause returns err, or the reason if the server ended the call.
func (k *call) cause(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.failure != nil {
		return k.failure
	}
	return err
}

// receive tracks the bytes of the call's messages.
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

// announced charges a message of which only the length has arrived.
func (k *call) announced(length uint32) {
	s := k.conn.server
	k.messages++
	switch {
	case k.messages > 1 && !k.streaming:
		k.stop(status.Error(codes.InvalidArgument, "a second message in a call that takes one"))
		return
	case int64(length) > s.cfg.MaxRequestBytes:
		k.stopped = true // gRPC refuses it and reads none of it
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

// charge makes the budget grant what a message of this length takes while it arrives. The
// size of a compressed message is known only after decompression; until then the estimate
// stands.
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

// maxBytes returns the maximum message length of a call that is not an export.
func (k *call) maxBytes() int { return maxOtherBytes(k.method) }

// decoded charges the decoded size of a message of a call that is not an export. The
// largest message counts until the call ends.
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

// resize charges the actual size of a request. The handler calls it.
func (k *call) resize(size int64) (why inflight.Refusal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if why = k.peer.Resize(k.granted, size); why == "" {
		k.granted = size
	}
	return why
}

// refusal returns the status for an exceeded bound.
func (k *call) refusal(why inflight.Refusal) error {
	if k.service != nil {
		return k.service.refused(why)
	}
	return k.conn.server.refusedOther(why)
}

// complete is called when the last byte of a message has arrived.
func (k *call) complete() {
	k.deadline.Stop()
	k.size, k.frames = 0, 0
}

func (k *call) tooManyFrames() bool {
	return k.frames > tinyFrames && k.size < k.frames*tinyFrameBytes
}

// hold keeps the grant until release. After an error the call has ended and must not be
// served.
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

// release returns the grant after hold.
func (k *call) release() {
	k.mu.Lock()
	k.held = false
	k.mu.Unlock()
	k.leave()
}

// ended is called when the context of the call has ended.
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

package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

// The parts of HTTP/2 framing that conn follows.
const (
	prefaceBytes     = 24
	frameHeaderBytes = 9
	frameData        = 0x0
	frameReset       = 0x3
	flagPadded       = 0x8
)

const (
	// readBufferBytes is small because every connection holds it; payloads are read past
	// it.
	readBufferBytes = 32 << 10
	// tinyFrames and tinyFrameBytes distinguish an attack's frames from a client's: gRPC
	// keeps some 60 bytes per frame, so one-byte frames would cost that many times a
	// message's length.
	tinyFrames     = 256
	tinyFrameBytes = 128
)

const (
	// A client may reset resetsAtOnce calls at once, several times what it may have open,
	// and resetsPerSecond from then on. Clients reset a stream when a call's deadline passes.
	// Opening and resetting streams in a loop would make the server do the work of a call
	// for each, without the bound of concurrent streams (CVE-2023-44487).
	resetsAtOnce    = 1024
	resetsPerSecond = 128
)

var errResets = errors.New("the client resets too many calls")

var errTinyFrames = errors.New("the client sends a message in too many small frames")

// conn is a connection whose HTTP/2 frames are followed while gRPC reads them. gRPC reads
// a message completely before any handler sees it; conn sees the length of each message
// before its bytes and charges it to the budget.
//
// gRPC must read without its own buffer (grpc.ReadBufferSize(0)): then the frame whose
// bytes were handed out last is the one that gRPC handles, and stream is its stream id
// while the tap handler runs. The reading goroutine owns everything but calls.
type conn struct {
	net.Conn

	server  *Server
	from    *bufio.Reader
	address netip.Addr
	exports *inflight.Peer // part of Server.budget
	others  *inflight.Peer // part of Server.others

	preface int // bytes of the client's preface still to arrive
	header  [frameHeaderBytes]byte
	have    int    // of header
	stream  uint32 // of the newest frame
	payload int    // bytes of that frame still to arrive
	padded  bool   // the next byte of the payload is the padding length
	padding int    // bytes at the end of the payload
	call    *call  // the call whose data the payload is; nil for other frames and ended calls

	resets *rate.Limiter

	closing  sync.Once
	givingUp sync.Once // see answer.unread
	forget   func()    // nil for plain text

	mu      sync.Mutex
	calls   map[uint32]*call
	answers map[*answer]struct{} // that wait to be taken; nil once the connection is closed
}

func (s *Server) newConn(c net.Conn) *conn {
	address := addressOf(c.RemoteAddr()).Addr()
	return &conn{
		Conn: c, server: s, from: bufio.NewReaderSize(c, readBufferBytes), address: address,
		exports: s.budget.Peer(address), others: s.others.Peer(address),
		resets:  rate.NewLimiter(resetsPerSecond, resetsAtOnce),
		preface: prefaceBytes, calls: make(map[uint32]*call), answers: make(map[*answer]struct{}),
	}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if followed := c.follow(p[:n]); followed != nil {
		_ = c.Close()
		return 0, followed
	}
	return n, err
}

// Close also returns the connection's share of the budgets, and drops the answers that wait.
// Calls in flight return their share themselves.
func (c *conn) Close() error {
	c.closing.Do(func() {
		c.exports.Close()
		c.others.Close()
		c.dropAnswers()
		if c.forget != nil {
			c.forget()
		}
	})
	return c.Conn.Close()
}

// follow processes bytes in the order of arrival.
func (c *conn) follow(p []byte) error {
	if n := min(len(p), c.preface); n > 0 {
		c.preface -= n
		p = p[n:]
	}
	for len(p) > 0 {
		if c.payload == 0 {
			n := copy(c.header[c.have:], p)
			p = p[n:]
			if c.have += n; c.have == frameHeaderBytes {
				c.have = 0
				if err := c.begin(); err != nil {
					return err
				}
			}
			continue
		}
		n := min(len(p), c.payload)
		err := c.data(p[:n])
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// begin parses the header of a frame.
func (c *conn) begin() error {
	c.payload = int(c.header[0])<<16 | int(c.header[1])<<8 | int(c.header[2])
	c.stream = binary.BigEndian.Uint32(c.header[5:]) &^ (1 << 31)
	c.call, c.padded, c.padding = nil, false, 0
	kind := c.header[3]
	if kind != frameData && kind != frameReset {
		return nil
	}
	c.mu.Lock()
	k := c.calls[c.stream]
	c.mu.Unlock()
	if kind == frameData {
		c.call, c.padded = k, c.header[4]&flagPadded != 0
		return nil
	}
	// A client whose call was refused resets the stream if it has not sent all of it: the
	// server's doing. Resets of such streams, or of none, end no work: no handler has begun, and
	// gRPC reads no further while too many of its answers to such frames wait to be written.
	if k != nil && !c.resets.Allow() {
		c.server.resetFloods.Inc()
		return errResets
	}
	return nil
}

// data processes a part of a frame's payload.
func (c *conn) data(p []byte) error {
	if c.call == nil {
		c.payload -= len(p)
		return nil
	}
	if c.padded {
		c.padded = false
		c.padding = int(p[0])
		c.payload--
		p = p[1:]
	}
	content := p[:max(0, min(len(p), c.payload-c.padding))]
	c.payload -= len(p)
	c.call.receive(content)
	if c.payload == 0 && c.call.tooManyFrames() {
		c.server.tinyFrames.Inc()
		return errTinyFrames
	}
	return nil
}

// guarded wraps every connection after its handshake in a conn.
type guarded struct {
	credentials.TransportCredentials
	server *Server
}

func (g guarded) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := g.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	c := g.server.newConn(secured)
	if state, ok := info.(credentials.TLSInfo); ok && g.server.acceptor != nil {
		if c.forget, err = g.server.acceptor.Track(secured, state.State); err != nil {
			_ = c.Close()
			return nil, nil, err
		}
	}
	return c, authInfo{AuthInfo: info, conn: c}, nil
}

func (g guarded) Clone() credentials.TransportCredentials {
	return guarded{g.TransportCredentials.Clone(), g.server}
}

// authInfo is the TLS state of a peer, with the connection.
type authInfo struct {
	credentials.AuthInfo
	conn *conn
}

// TLS returns the TLS state of the peer, or the zero value for plain text.
func (a authInfo) TLS() tls.ConnectionState {
	if info, ok := a.AuthInfo.(credentials.TLSInfo); ok {
		return info.State
	}
	return tls.ConnectionState{}
}

// connOf returns the connection of a call.
func connOf(ctx context.Context) *conn {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.conn
		}
	}
	return nil
}

func addressOf(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

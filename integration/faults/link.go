package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// direction is one of the two ways of a link.
type direction int

const (
	up   direction = iota // from the client to the server
	down                  // from the server to the client
)

func (d direction) String() string { return [...]string{"up", "down"}[d] }

// wire is what a link carries, as far as it looks into it.
type wire int

const (
	opaque wire = iota
	kafkaWire
	clickhouseWire
)

// step is a step of the delivery protocol, as it passes a link between a writer
// and an engine.
type step int

const (
	noStep        step = iota
	commitSent         // an OffsetCommit request is about to reach Kafka
	commitAnswer       // Kafka's answer to it is about to reach the writer
	insertSent         // an INSERT is about to reach ClickHouse
	rowsSent           // its rows are
	insertAnswer       // what ClickHouse says after them is about to reach the writer
	numberOfSteps = iota - 1
)

func (s step) String() string {
	return [...]string{"none", "commit sent", "commit answered", "INSERT sent", "rows sent", "INSERT answered"}[s]
}

// link is a TCP proxy: the way from one program to another. Programs know only
// the link's address, also as brokers advertise it.
//
// Its methods are safe for concurrent use.
type link struct {
	name   string
	target string
	wire   wire
	ln     net.Listener
	conns  sync.WaitGroup

	mu      sync.Mutex
	resumed chan struct{} // not closed while the link hangs
	refuse  bool
	delay   time.Duration // of each chunk
	budget  [2]int        // bytes that pass until the connection is cut, where armed
	armed   [2]bool
	onStep  map[step]func()
	open    map[*pipe]struct{}
	closed  bool
}

// newLink listens on addr.
func newLink(name, addr, target string, w wire) (*link, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	resumed := make(chan struct{})
	close(resumed)
	l := &link{
		name: name, target: target, wire: w, ln: ln, resumed: resumed,
		onStep: make(map[step]func()), open: make(map[*pipe]struct{}),
	}
	l.conns.Go(l.accept)
	return l, nil
}

func (l *link) addr() string { return l.ln.Addr().String() }

// close ends all connections and stops listening.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	_ = l.ln.Close()
	l.resume()
	l.cut()
	l.conns.Wait()
}

// hang lets no byte pass until resume; connections stay, and new ones are accepted.
func (l *link) hang() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.resumed:
		l.resumed = make(chan struct{})
	default:
	}
}

func (l *link) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.resumed:
	default:
		close(l.resumed)
	}
}

// setRefuse makes the link close new connections at once.
func (l *link) setRefuse(refuse bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = refuse
}

// setDelay holds every chunk for so long.
func (l *link) setDelay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// cutAfter cuts the connection that carries the nth byte from now on in this
// direction, right after that byte.
func (l *link) cutAfter(n int, d direction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.budget[d], l.armed[d] = n, true
}

// disarm takes back what cutAfter and at asked for.
func (l *link) disarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = [2]bool{}
	clear(l.onStep)
}

// cut closes all connections.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.open {
		p.cut()
	}
}

// at calls f once, when the step is about to pass the link; nothing passes its
// connection until f returns.
func (l *link) at(s step, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onStep[s] = f
}

func (l *link) passes(s step) {
	if s == noStep {
		return
	}
	l.mu.Lock()
	f := l.onStep[s]
	delete(l.onStep, s)
	l.mu.Unlock()
	if f != nil {
		f()
	}
}

func (l *link) accept() {
	for {
		client, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		refuse := l.refuse || l.closed
		l.mu.Unlock()
		if refuse {
			_ = client.Close()
			continue
		}
		l.conns.Go(func() { l.serve(client.(*net.TCPConn)) }) //nolint:forcetypeassert // a TCP listener has no other
	}
}

func (l *link) serve(client *net.TCPConn) {
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.target)
	if err != nil {
		_ = client.SetLinger(0)
		return
	}
	server := conn.(*net.TCPConn) //nolint:forcetypeassert // as above
	p := &pipe{link: l, client: client, server: server, gone: make(chan struct{})}
	l.mu.Lock()
	l.open[p] = struct{}{}
	l.mu.Unlock()
	var ways sync.WaitGroup
	ways.Go(func() { p.copy(server, client, up) })
	ways.Go(func() { p.copy(client, server, down) })
	ways.Wait()
	l.mu.Lock()
	delete(l.open, p)
	l.mu.Unlock()
	p.cut()
	_ = server.Close()
}

// pipe is one connection through a link.
type pipe struct {
	link           *link
	client, server *net.TCPConn
	once           sync.Once
	gone           chan struct{} // closed when the connection is cut
	sniffer        sniffer
}

// cut ends the connection for the client at once. The embedded ClickHouse aborts
// when a connection is reset, which a full server survives, so towards it the
// connection ends in order, and what it still sends is read.
func (p *pipe) cut() {
	p.once.Do(func() {
		close(p.gone)
		_ = p.client.SetLinger(0)
		_ = p.client.Close()
		if p.link.wire == clickhouseWire {
			_ = p.server.CloseWrite()
			_ = p.server.SetReadDeadline(time.Now().Add(time.Minute))
			return
		}
		_ = p.server.SetLinger(0)
		_ = p.server.Close()
	})
}

func (p *pipe) copy(to, from *net.TCPConn, d direction) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !p.forward(to, buf[:n], d) {
			p.cut()
			if d == down && p.link.wire == clickhouseWire {
				_, _ = io.Copy(io.Discard, from)
			}
			return
		}
		if err != nil {
			if errors.Is(err, io.EOF) && d == up {
				_ = to.CloseWrite()
				return
			}
			p.cut()
			return
		}
	}
}

// forward writes b as the link's faults have it. It reports whether the
// connection goes on.
func (p *pipe) forward(to *net.TCPConn, b []byte, d direction) bool {
	l := p.link
	l.passes(p.sniffer.see(l.wire, b, d))
	l.mu.Lock()
	resumed, delay, cut := l.resumed, l.delay, false
	if l.armed[d] {
		if cut = len(b) >= l.budget[d]; cut {
			b, l.armed[d] = b[:l.budget[d]], false
		}
		l.budget[d] -= len(b)
	}
	l.mu.Unlock()
	select {
	case <-resumed:
	case <-p.gone:
		return false
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-p.gone:
			return false
		}
	}
	if _, err := to.Write(b); err != nil {
		return false
	}
	return !cut
}

// sniffer finds the steps of the protocol in the bytes of one connection.
type sniffer struct {
	mu      sync.Mutex
	frame   int    // Kafka: bytes left of the request under way
	head    []byte // Kafka: of a request that began at the end of a chunk
	expects step
}

// see returns the step that b carries.
func (s *sniffer) see(w wire, b []byte, d direction) step {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case w == kafkaWire && d == up:
		if s.requests(b) {
			s.expects = commitAnswer
			return commitSent
		}
	case w == clickhouseWire && d == up:
		if bytes.Contains(b, []byte("INSERT INTO")) {
			s.expects = rowsSent
			return insertSent
		}
		if s.expects == rowsSent {
			s.expects = insertAnswer
			return rowsSent
		}
	case d == down && (s.expects == commitAnswer || s.expects == insertAnswer):
		found := s.expects
		s.expects = noStep
		return found
	}
	return noStep
}

// requests reports whether an OffsetCommit begins in b.
func (s *sniffer) requests(b []byte) bool {
	const offsetCommit, header = 8, 6 // length and key
	found := false
	for len(b) > 0 {
		if s.frame > 0 {
			n := min(s.frame, len(b))
			s.frame -= n
			b = b[n:]
			continue
		}
		n := min(header-len(s.head), len(b))
		s.head, b = append(s.head, b[:n]...), b[n:]
		if len(s.head) == header {
			s.frame = int(binary.BigEndian.Uint32(s.head)) - 2
			found = found || binary.BigEndian.Uint16(s.head[4:]) == offsetCommit
			s.head = s.head[:0]
		}
	}
	return found
}

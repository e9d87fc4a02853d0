package otlphttp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
)

const (
	// unknownLength is what is set aside for a body whose length is not announced, until
	// more of it has come.
	unknownLength = 64 << 10
	// expansion is how much larger than its compressed form a request is taken to
	// be at first: OTLP under gzip has 5 to 12.
	expansion = 8

	// writeTimeout is time for an answer to be taken. It fits into a socket's
	// buffer, unless the client does not read its answers at all.
	writeTimeout = 10 * time.Second

	// A client that is refused may read its answer only when it has sent the
	// body, and a connection closed over unread bytes would take the answer with it. So the
	// rest is read and dropped, within these bounds. Meanwhile the connection counts as idle, and
	// is closed when others need it.
	lingerTime = 2 * time.Second
	// missedTime is lingerTime for paths and methods that are not served. It is for the body of an
	// exporter of another signal, which would retry after a reset, and not after an answer.
	missedTime  = 250 * time.Millisecond
	lingerBytes = 256 << 20
)

// exchange is one request and its answer.
type exchange struct {
	server  *Server
	conn    *connection
	peer    *inflight.Peer
	control *http.ResponseController
	body    io.Reader
	reading bool    // the body has been asked for
	ended   bool    // nothing more of the body can be read
	granted int64   // by the budget
	buffer  *[]byte // holds the body, nil before and after
}

// ServeHTTP answers one request. It is what net/http calls.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := exchange{server: s, control: http.NewResponseController(w), body: r.Body, ended: r.ContentLength == 0}
	x.conn, _ = r.Context().Value(connKey{}).(*connection) // connected has put it there
	x.peer = x.conn.peer
	if r.ProtoMajor == 2 {
		s.connections.multiplexes(x.conn)
	}
	// An answer may go out before the body has come. What the control says
	// otherwise is that the connection is gone, which reading and writing will notice.
	_ = x.control.EnableFullDuplex()
	_ = x.control.SetWriteDeadline(time.Time{}) // that of the request before

	f := form{json: true, header: inJSON}
	answer := s.refuseUntrusted(w.Header(), r)
	if answer == nil {
		answer = s.crossOrigin(w.Header(), r)
	}
	if answer == nil {
		f, answer = s.formOf(r)
	}
	if answer == nil {
		answer = x.answer(r, f)
	}
	s.metrics.answered(answer, time.Since(start))
	_ = x.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	answer.write(w, f)
	switch {
	case x.ended, r.ProtoMajor == 2: // there the stream is reset, without harm to the connection
	case !x.reading && strings.EqualFold(r.Header.Get("Expect"), "100-continue"):
		// The client has not been asked for its body: net/http need not wait for it.
		_ = x.control.SetReadDeadline(time.Now())
	case answer.reason == badPath, answer.reason == badMethod:
		x.linger(missedTime)
	default:
		x.linger(lingerTime)
	}
}

// refuseUntrusted refuses a request on a connection whose client would not be let in any more, and has
// the connection end with the answer.
func (s *Server) refuseUntrusted(h http.Header, r *http.Request) *reply {
	if s.trusted == nil || r.TLS == nil {
		return nil
	}
	err := s.trusted(*r.TLS)
	if err == nil {
		return nil
	}
	h.Set("Connection", "close") // of HTTP/2 too, by GOAWAY
	return s.refuse(http.StatusForbidden, code.Code_PERMISSION_DENIED, untrusted, "%v", err)
}

// answer has a request consumed that is of form f.
func (x *exchange) answer(r *http.Request, f form) (answer *reply) {
	s := x.server
	if !s.running.enter() {
		return &reply{
			status: http.StatusServiceUnavailable, code: code.Code_UNAVAILABLE, reason: stopping,
			message: "receiver is stopping", retryAfter: s.cfg.RetryDelay,
		}
	}
	defer s.running.leave()
	if r.ContentLength > s.cfg.MaxRequestBytes {
		return s.refuseTooLarge("request is too large")
	}
	most := s.cfg.MaxRequestBytes
	if r.ContentLength >= 0 && f.encoding == "" {
		most = r.ContentLength
	}
	var why inflight.Refusal
	if x.granted, why = x.peer.EnterAtMost(most); why != "" {
		return s.refuseBusy(why)
	}
	// After a panic a goroutine of the consumer may still read the body.
	returned := false
	defer func() {
		if cause := recover(); cause != nil {
			answer = s.panicked(r, cause)
		}
		x.peer.Leave(x.granted)
		if x.buffer != nil && returned {
			s.buffers.Put(x.buffer)
		}
	}()
	answer = x.receiveAndConsume(r, f)
	returned = true
	return answer
}

func (x *exchange) receiveAndConsume(r *http.Request, f form) *reply {
	s := x.server
	if refused := x.receive(r.ContentLength); refused != nil {
		return refused
	}
	if refused := x.decode(r.Context(), f.encoding); refused != nil {
		return refused
	}
	body := *x.buffer
	if why := x.peer.Resize(x.granted, int64(len(body))); why != "" {
		return s.refuseBusy(why)
	}
	x.granted = int64(len(body))
	var problems otlpjson.Problems
	if f.json {
		var refused *reply
		if body, problems, refused = x.fromJSON(body); refused != nil {
			return refused
		}
	}
	s.metrics.bytes.WithLabelValues(formPlain).Add(float64(len(body)))
	result, err := s.consumer.ConsumeTraces(r.Context(), Request{Body: body, Peer: peerOf(r.RemoteAddr)})
	if err != nil {
		return s.failed(err)
	}
	result.add(&problems)
	return &reply{status: http.StatusOK, result: result}
}

// receive reads the body into x.buffer, as it came. length is what was announced, -1 for
// nothing.
func (x *exchange) receive(length int64) *reply {
	s := x.server
	if length < 0 {
		length = unknownLength
	}
	x.buffer = s.buffers.Get(int(min(length, x.granted)))
	x.reading = true
	paced := &pacedReader{exchange: x, start: time.Now()}
	if refused := x.fill(paced, &x.buffer, 0, x.unreadable); refused != nil {
		return refused
	}
	x.ended = true
	// Until the next request comes. The deadline would end the consumer's context,
	// because net/http goes on reading to notice a client that leaves.
	_ = x.control.SetReadDeadline(time.Time{})
	s.metrics.bytes.WithLabelValues(formWire).Add(float64(len(*x.buffer)))
	return nil
}

// unreadable says why a body could not be read to its end.
func (x *exchange) unreadable(err error) *reply {
	s := x.server
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return s.refuse(http.StatusRequestTimeout, code.Code_DEADLINE_EXCEEDED, tooSlow,
			"request came too slowly: send at least %d bytes a second, and all within %s", s.cfg.MinBodyRate, s.cfg.BodyTimeout)
	}
	x.ended = true
	return s.refuse(http.StatusBadRequest, code.Code_INVALID_ARGUMENT, brokenOff, "read request: %v", err)
}

// decode replaces the body in x.buffer by what it decompresses to.
func (x *exchange) decode(ctx context.Context, encoding string) *reply {
	if encoding == "" {
		return nil
	}
	s := x.server
	select {
	case s.decoders.slots <- struct{}{}:
		defer func() { <-s.decoders.slots }()
	case <-ctx.Done():
		return s.refuse(http.StatusBadRequest, code.Code_CANCELLED, brokenOff, "client has gone")
	}
	undecodable := func(err error) *reply {
		return s.refuse(http.StatusBadRequest, code.Code_INVALID_ARGUMENT, malformed, "decompress %s: %v", encoding, err)
	}
	decoder, err := s.decoders.take(encoding, *x.buffer)
	if err != nil {
		return undecodable(err)
	}
	defer s.decoders.put(encoding, decoder)
	size := min(expansion*int64(len(*x.buffer)), s.cfg.MaxRequestBytes)
	if why := x.grow(int64(len(*x.buffer)) + size); why != "" {
		return s.refuseBusy(why)
	}
	plain := s.buffers.Get(int(size))
	if refused := x.fill(decoder, &plain, int64(len(*x.buffer)), undecodable); refused != nil {
		s.buffers.Put(plain)
		return refused
	}
	s.buffers.Put(x.buffer)
	x.buffer = plain
	return nil
}

// fill reads src to its end into *buffer, in whose place it puts larger ones as
// needed. held is what the request holds besides. failed makes an answer of an error
// of src.
func (x *exchange) fill(src io.Reader, buffer **[]byte, held int64, failed func(error) *reply) *reply {
	s := x.server
	b := (**buffer)[:cap(**buffer)]
	for n := 0; ; {
		read, err := src.Read(b[n:])
		n += read
		switch {
		case int64(n) > s.cfg.MaxRequestBytes:
			return s.refuseTooLarge("request is too large")
		case errors.Is(err, io.EOF):
			**buffer = b[:n]
			return nil
		case err != nil:
			return failed(err)
		case n < len(b):
			continue
		}
		size := min(2*int64(n), s.cfg.MaxRequestBytes+1) // a byte more shows that it is too large
		if why := x.grow(held + size); why != "" {
			return s.refuseBusy(why)
		}
		larger := s.buffers.Get(int(size))
		copy(*larger, b)
		s.buffers.Put(*buffer)
		*buffer = larger
		b = (*larger)[:cap(*larger)]
	}
}

// grow has at least size bytes granted by the budget. The one byte by which a request
// shows itself too large is not counted.
func (x *exchange) grow(size int64) inflight.Refusal {
	size = min(size, x.server.cfg.MaxBytesInFlight)
	if size <= x.granted {
		return ""
	}
	if why := x.peer.Grow(x.granted, size); why != "" {
		return why
	}
	x.granted = size
	return ""
}

// fromJSON returns a JSON body as protobuf, without what could not be read.
func (x *exchange) fromJSON(body []byte) ([]byte, otlpjson.Problems, *reply) {
	s := x.server
	size := int64(len(body)) + jsonMemory(body)
	if size > s.cfg.MaxBytesInFlight {
		return nil, otlpjson.Problems{}, s.refuse(http.StatusRequestEntityTooLarge, code.Code_RESOURCE_EXHAUSTED, tooLarge,
			"JSON of %d bytes may take %d bytes of memory, of which %d can be had: send smaller batches, or protobuf",
			len(body), size, s.cfg.MaxBytesInFlight)
	}
	if why := x.grow(size); why != "" {
		return nil, otlpjson.Problems{}, s.refuseBusy(why)
	}
	body, problems, err := otlpjson.Decode(body)
	if err != nil {
		return nil, problems, s.refuse(http.StatusBadRequest, code.Code_INVALID_ARGUMENT, malformed, "read JSON: %v", err)
	}
	s.metrics.unread.WithLabelValues("spans").Add(float64(problems.Spans))
	s.metrics.unread.WithLabelValues("values").Add(float64(problems.Values))
	return body, problems, nil
}

// linger reads and drops what is left of the body. When it does not end in time, net/http closes
// the connection.
func (x *exchange) linger(most time.Duration) {
	if x.control.Flush() != nil || x.control.SetReadDeadline(time.Now().Add(most)) != nil {
		return
	}
	x.server.connections.lingers(x.conn)
	defer x.server.connections.resumes(x.conn)
	_, _ = io.CopyN(io.Discard, x.body, lingerBytes)
}

func (s *Server) panicked(r *http.Request, cause any) *reply {
	s.metrics.panics.Inc()
	s.log.ErrorContext(r.Context(), "panic while serving a request",
		slog.String("path", r.URL.Path), slog.Any("panic", cause), slog.String("stack", string(debug.Stack())))
	return &reply{status: http.StatusInternalServerError, code: code.Code_INTERNAL, message: "internal error"}
}

// pacedReader reads a body that has to come at a least rate: a read may wait until
// the time that the bytes before it and BodyGrace allow.
type pacedReader struct {
	*exchange

	start time.Time
	bytes int64
}

func (p *pacedReader) Read(b []byte) (int, error) {
	cfg := &p.server.cfg
	allowed := cfg.BodyGrace + time.Duration(float64(p.bytes)/float64(cfg.MinBodyRate)*float64(time.Second))
	if err := p.control.SetReadDeadline(p.start.Add(min(allowed, cfg.BodyTimeout))); err != nil {
		return 0, err
	}
	n, err := p.body.Read(b)
	p.bytes += int64(n)
	return n, err
}

func peerOf(remote string) netip.AddrPort {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

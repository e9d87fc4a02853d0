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
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

const (
	// unknownLength is the initial reservation for a body without an announced length.
	unknownLength = 64 << 10
	// expansion is the assumed ratio of decompression; gzip compresses OTLP 5 to 12
	// times.
	expansion = 8

	// writeTimeout bounds the write of a response. A response fits into the socket
	// buffer, unless the client does not read its responses at all.
	writeTimeout = 10 * time.Second

	// A refused client may read its response only after it has sent its body, and closing
	// a connection with unread bytes would discard the response. So the server drains the
	// body within these bounds. Meanwhile the connection counts as idle and may be closed
	// for others.
	lingerTime = 2 * time.Second
	// missedTime is lingerTime for unknown paths and methods. It lets an exporter of
	// another signal finish its body: it would retry after a reset, but not after a
	// response.
	missedTime  = 250 * time.Millisecond
	lingerBytes = 256 << 20
)

// exchange is one request and its response.
type exchange struct {
	server  *Server
	conn    *connection
	peer    *inflight.Peer
	control *http.ResponseController
	body    io.Reader
	reading bool    // the server has started to read the body
	ended   bool    // the body is read to its end
	granted int64   // bytes granted by the budget
	buffer  *[]byte // the body; nil before and after
}

// ServeHTTP implements http.Handler. It answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := exchange{server: s, control: http.NewResponseController(w), body: r.Body, ended: r.ContentLength == 0}
	x.conn, _ = r.Context().Value(connKey{}).(*connection) // set by connected
	x.peer = x.conn.peer
	if r.ProtoMajor == 2 {
		s.connections.multiplexes(x.conn)
	}
	// A response may be sent before the body has arrived. An error here means that the
	// connection is gone, which reads and writes will report.
	_ = x.control.EnableFullDuplex()
	_ = x.control.SetWriteDeadline(time.Time{}) // clear the deadline of the previous request

	f := form{json: true, header: inJSON}
	answer := s.refuseUntrusted(w.Header(), r)
	if answer == nil {
		answer = s.crossOrigin(w.Header(), r)
	}
	if answer == nil {
		f, answer = s.formOf(r)
	}
	if answer == nil {
		answer = s.refuseStranger(r)
	}
	if answer == nil {
		answer = x.answer(r, f)
	}
	s.metrics.answered(answer, time.Since(start))
	_ = x.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	answer.write(w, f)
	switch {
	case x.ended, r.ProtoMajor == 2: // HTTP/2 resets the stream and keeps the connection
	case !x.reading && strings.EqualFold(r.Header.Get("Expect"), "100-continue"):
		// The client was not asked for its body, so net/http need not wait for it.
		_ = x.control.SetReadDeadline(time.Now())
	case answer.reason == badPath, answer.reason == badMethod:
		x.linger(missedTime)
	default:
		x.linger(lingerTime)
	}
}

// refuseUntrusted refuses a request on a connection whose client certificate is no longer
// trusted, and closes the connection after the response.
func (s *Server) refuseUntrusted(h http.Header, r *http.Request) *reply {
	if s.trusted == nil || r.TLS == nil {
		return nil
	}
	err := s.trusted(*r.TLS)
	if err == nil {
		return nil
	}
	h.Set("Connection", "close") // sends GOAWAY on HTTP/2
	return s.refuse(http.StatusForbidden, code.Code_PERMISSION_DENIED, untrusted, "%v", err)
}

// refuseStranger refuses a request without one of the bearer tokens.
func (s *Server) refuseStranger(r *http.Request) *reply {
	if s.bearer == nil || s.bearer.Match(tokens.Bearer(r.Header.Get("Authorization"))).Known() {
		return nil
	}
	return s.refuse(http.StatusUnauthorized, code.Code_UNAUTHENTICATED, unauthorized,
		"the bearer token is missing or wrong: send one of %s as Authorization: Bearer TOKEN", s.bearerKey)
}

// answer passes a request of form f to the consumer and returns the reply.
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
	// After a panic, a goroutine of the consumer may still read the body.
	returned := false
	defer func() {
		if cause := recover(); cause != nil {
			answer = s.panicked(r, cause)
		}
		x.peer.Leave(x.granted)
		if x.buffer != nil && returned {
			x.ReleaseBody()
		}
	}()
	answer = x.receiveAndConsume(r, f)
	returned = true
	return answer
}

// ReleaseBody implements signal.Lender.
func (x *exchange) ReleaseBody() {
	x.server.buffers.Put(x.buffer)
	x.buffer = nil
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
	result, err := s.consumer.Consume(r.Context(), signal.Request{Body: body, Lender: x, Peer: peerOf(r.RemoteAddr)})
	if err != nil {
		return s.failed(err)
	}
	addProblems(&result, &problems)
	return &reply{status: http.StatusOK, result: result}
}

// receive reads the undecoded body into x.buffer. length is the announced length, or -1.
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
	// Clear the deadline until the next request. It would cancel the consumer's context,
	// because net/http keeps reading to detect a client that disconnects.
	_ = x.control.SetReadDeadline(time.Time{})
	s.metrics.bytes.WithLabelValues(formWire).Add(float64(len(*x.buffer)))
	return nil
}

// unreadable returns the reply to a body that could not be read to its end.
func (x *exchange) unreadable(err error) *reply {
	s := x.server
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return s.refuse(http.StatusRequestTimeout, code.Code_DEADLINE_EXCEEDED, tooSlow,
			"request body arrived too slowly: send at least %d bytes per second, and the whole body within %s", s.cfg.MinBodyRate, s.cfg.BodyTimeout)
	}
	x.ended = true
	return s.refuse(http.StatusBadRequest, code.Code_INVALID_ARGUMENT, brokenOff, "read request: %v", err)
}

// decode replaces the body in x.buffer by its decompressed form.
func (x *exchange) decode(ctx context.Context, encoding string) *reply {
	if encoding == "" {
		return nil
	}
	s := x.server
	select {
	case s.decoders.slots <- struct{}{}:
		defer func() { <-s.decoders.slots }()
	case <-ctx.Done():
		return s.refuse(http.StatusBadRequest, code.Code_CANCELLED, brokenOff, "client disconnected")
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

// fill reads src to its end into *buffer and replaces *buffer by larger ones as needed.
// held is the size of the request's other memory. failed converts an error of src to a
// reply.
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
		size := min(2*int64(n), s.cfg.MaxRequestBytes+1) // one byte more shows that the body is too large
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

// grow makes the budget grant at least size bytes. It does not count the one byte that
// shows a request to be too large.
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

// fromJSON converts a JSON body to protobuf and omits what it cannot read.
func (x *exchange) fromJSON(body []byte) ([]byte, otlpjson.Problems, *reply) {
	s := x.server
	size := int64(len(body)) + jsonMemory(body)
	if size > s.cfg.MaxBytesInFlight {
		return nil, otlpjson.Problems{}, s.refuse(http.StatusRequestEntityTooLarge, code.Code_RESOURCE_EXHAUSTED, tooLarge,
			"JSON of %d bytes may take %d bytes of memory, more than the limit of %d: send smaller batches, or protobuf",
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

// linger drains the rest of the body. If it does not end in time, net/http closes the
// connection.
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

// pacedReader enforces a minimum rate on a body: a read may last until the time allowed
// by BodyGrace and the bytes received so far.
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

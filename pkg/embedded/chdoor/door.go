// Package chdoor stands before the native port of the embedded ClickHouse.
package chdoor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Door is a proxy for the native port of the embedded ClickHouse, whose library aborts
// when a client fails to log in or resets an idle connection. The door answers failed logins
// itself, completes those that a client leaves halfway, and ends every connection to the
// engine in order, whatever the client does. It does not look at what follows the login.
type Door struct {
	listener net.Listener
	native   string // host:port of the engine
	http     string // the same, to ask which databases exist
	log      *slog.Logger
	places   chan struct{}
	refusals chan struct{}
}

const (
	// maxNativeClients bounds the connections; others are refused. An idle one costs the
	// engine about 2 MB.
	maxNativeClients = 128
	// maxRefusals bounds those being told so; others are closed without a word.
	maxRefusals = 32
	// refusalTimeout is how long a refused client may take to read why.
	refusalTimeout = time.Second
	// loginTimeout is how long a client may take for its hello, and again for its addendum.
	loginTimeout = 10 * time.Second
	// maxLoginText bounds each text of a login.
	maxLoginText = 4 << 10
	// copySize is that of the buffer of each direction of a connection.
	copySize = 32 << 10
)

// Open listens on a loopback port, 0 for a free one. native and http are the ports of the
// engine behind it, as host:port.
func Open(port int, native, http string, log *slog.Logger) (*Door, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return &Door{
		listener: listener, native: native, http: http, log: log,
		places: make(chan struct{}, maxNativeClients), refusals: make(chan struct{}, maxRefusals),
	}, nil
}

// Addr is the host:port that clients connect to.
func (d *Door) Addr() string { return d.listener.Addr().String() }

// Run serves until ctx ends and the engine has closed the connections to it.
func (d *Door) Run(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = d.listener.Close() })()
	var clients sync.WaitGroup
	defer clients.Wait()
	// in gives conn a place of those, unless all are taken.
	in := func(places chan struct{}, conn net.Conn, serve func(context.Context, *net.TCPConn)) bool {
		select {
		case places <- struct{}{}:
		default:
			return false
		}
		clients.Go(func() {
			defer func() { <-places }()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			defer conn.Close()
			serve(ctx, conn.(*net.TCPConn)) //nolint:forcetypeassert // a TCP listener accepts no other
		})
		return true
	}
	full := &refusedLogin{proto.ErrTooManySimultaneousQueries, fmt.Sprintf("the embedded ClickHouse serves %d connections at once; close one first", maxNativeClients)}
	for {
		conn, err := d.accept(ctx)
		if err != nil {
			return // with ctx
		}
		if !in(d.places, conn, d.serve) && !in(d.refusals, conn, full.tell) {
			_ = conn.Close()
		}
	}
}

// accept returns the next connection. It returns an error only when ctx has ended: others,
// such as too many open files, pass.
func (d *Door) accept(ctx context.Context) (conn net.Conn, err error) {
	err = retry.Do(ctx, retry.Policy{First: 10 * time.Millisecond, Max: time.Second}, func(context.Context) (err error) {
		conn, err = d.listener.Accept()
		return err
	}, func(f retry.Failure) {
		if f.Count == 1 {
			d.log.Warn("accept no connections on the native port of the embedded ClickHouse, trying again", slog.Any("error", f.Err))
		}
	})
	return conn, err
}

func (d *Door) serve(ctx context.Context, client *net.TCPConn) {
	_ = client.SetReadDeadline(time.Now().Add(loginTimeout))
	in := bufio.NewReader(client)
	if first, err := in.Peek(1); err == nil && (first[0] == 'G' || first[0] == 'P') { // GET, POST, PUT
		_, port, _ := net.SplitHostPort(d.Addr())
		_, _ = fmt.Fprintf(client, "HTTP/1.0 400 Bad Request\r\n\r\nPort %s is the native port of ClickHouse, for clickhouse-client; its HTTP interface has another port.\r\n", port)
		return
	}
	hello, err := readHello(in)
	if err == nil {
		err = d.admit(ctx, hello)
	}
	var refusal *refusedLogin
	if errors.As(err, &refusal) {
		refusal.tell(ctx, client)
		return
	}
	if err != nil {
		return // the client is gone, or the engine is starting again
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.native)
	if err != nil {
		return
	}
	engine := conn.(*net.TCPConn) //nolint:forcetypeassert // a dialer of "tcp" makes no other
	defer func() { _ = engine.Close() }()
	if _, err := engine.Write(hello.raw); err != nil {
		return
	}
	if errors.As(forward(engine, client, in, hello.revision), &refusal) {
		refusal.tell(ctx, client)
	}
}

// forward copies in both directions until the engine has closed. The client's end, in order
// or not, becomes an orderly end at the engine, which is read until it closes too: closing
// before would reset the connection. What the client sends first is the rest of its login,
// which the engine gets whole; otherwise it gets an empty one, and forward returns why.
func forward(engine, client *net.TCPConn, in *bufio.Reader, revision uint64) error {
	out := bufio.NewReader(engine)
	begin, serverRevision := readServerHello(out)
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		copyPlain(client, io.MultiReader(bytes.NewReader(begin), out))
		copyPlain(io.Discard, out) // the client is gone
		_ = client.CloseRead()     // ends the other direction
	}()
	_ = client.SetReadDeadline(time.Now().Add(loginTimeout))
	addendum, err := readAddendum(in, min(revision, serverRevision))
	_ = client.SetReadDeadline(time.Time{})
	if _, failed := engine.Write(addendum); err == nil && failed == nil {
		copyPlain(engine, in)
	}
	_ = engine.CloseWrite()
	<-answers
	return err
}

var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// copyPlain is io.Copy by way of a buffer: that of two TCP connections takes a pipe, two more
// open files, for each direction.
func copyPlain(to io.Writer, from io.Reader) {
	buffer := buffers.Get().(*[copySize]byte) //nolint:forcetypeassert // holds no other
	defer buffers.Put(buffer)
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buffer[:])
}

// login is what a client says first.
type login struct {
	raw                      []byte
	revision                 uint64 // of the protocol, the newest that the client speaks
	database, user, password string
}

// refusedLogin is a login that ClickHouse would refuse with an exception of the same code.
type refusedLogin struct {
	code proto.Error
	text string
}

func (r *refusedLogin) Error() string { return r.text }

// packet is the exception in the native protocol.
func (r *refusedLogin) packet() []byte {
	var b proto.Buffer
	b.PutUVarInt(uint64(proto.ServerCodeException))
	b.PutInt32(int32(r.code))
	b.PutString("DB::Exception")
	b.PutString("DB::Exception: " + r.text)
	b.PutString("") // the stack
	b.PutBool(false)
	return b.Buf
}

// tell sends the refusal and reads until the client, too, has closed: closing before would
// reset the connection, and the client could lose what it was told.
func (r *refusedLogin) tell(_ context.Context, client *net.TCPConn) {
	_ = client.SetDeadline(time.Now().Add(refusalTimeout))
	if _, err := client.Write(r.packet()); err != nil {
		return
	}
	_ = client.CloseWrite()
	copyPlain(io.Discard, client)
}

// packetReader reads numbers and texts and keeps them as they came. After an error they are
// 0 and empty.
type packetReader struct {
	in  *bufio.Reader
	raw []byte
	err error
}

func (p *packetReader) number() uint64 {
	if p.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(p.in)
	if err != nil {
		p.err = err
		return 0
	}
	p.raw = binary.AppendUvarint(p.raw, n)
	return n
}

func (p *packetReader) text() string {
	n := p.number()
	if n > maxLoginText {
		p.err = &refusedLogin{proto.ErrUnexpectedPacketFromClient, "the login has a text that is too long"}
	}
	if p.err != nil {
		return ""
	}
	b := make([]byte, n)
	if _, p.err = io.ReadFull(p.in, b); p.err != nil {
		return ""
	}
	p.raw = append(p.raw, b...)
	return string(b)
}

// readHello reads a login: its code, then name, version and revision of the client, then
// database, user and password.
func readHello(in *bufio.Reader) (login, error) {
	p := packetReader{in: in}
	if code := p.number(); p.err == nil && code != uint64(proto.ClientCodeHello) {
		p.err = &refusedLogin{proto.ErrUnexpectedPacketFromClient, fmt.Sprintf("unexpected packet from client: expected Hello, got %d", code)}
	}
	_, _, _ = p.text(), p.number(), p.number()
	l := login{revision: p.number(), database: p.text(), user: p.text(), password: p.text()}
	l.raw = p.raw
	return l, p.err
}

// readServerHello reads the engine's answer as far as its revision and returns what it read.
// The revision is 0 unless the answer is a hello.
func readServerHello(in *bufio.Reader) (raw []byte, revision uint64) {
	p := packetReader{in: in}
	if p.number() != uint64(proto.ServerCodeHello) {
		return p.raw, 0
	}
	_, _, _ = p.text(), p.number(), p.number()
	return p.raw, p.number()
}

const (
	// chunkedRevision is the first whose addendum names how the client sends and receives.
	chunkedRevision = 54470
	// replicasRevision is the first whose addendum has the version of parallel replicas.
	replicasRevision = 54471
)

// readAddendum reads what a client sends after the hello of the engine, where both speak
// revision. With an error comes one that is complete and says nothing.
func readAddendum(in *bufio.Reader, revision uint64) (raw []byte, err error) {
	p := packetReader{in: in}
	var empty []byte
	if revision >= uint64(proto.FeatureAddendum) {
		p.text() // the quota key
		empty = append(empty, 0)
	}
	if revision >= chunkedRevision {
		for _, direction := range []string{"send", "recv"} {
			if how := p.text(); strings.HasPrefix(how, "chunked") {
				p.err = &refusedLogin{proto.ErrNetworkError, "Incompatible protocol: " + direction + " is notchunked, client requested " + how}
			}
			empty = append(empty, 0)
		}
	}
	if revision >= replicasRevision {
		p.number()
		empty = append(empty, 0)
	}
	if p.err != nil {
		return empty, p.err
	}
	return p.raw, nil
}

// admit returns a refusedLogin unless the engine would take the login.
func (d *Door) admit(ctx context.Context, l login) error {
	if l.user == "" { // at which the library aborts as well
		return &refusedLogin{proto.ErrUnexpectedPacketFromClient, "unexpected packet from client: no user in Hello package"}
	}
	if l.user != "default" || l.password != "" {
		return &refusedLogin{
			proto.ErrAuthenticationFailed,
			l.user + ": authentication failed: the embedded ClickHouse has one user, default, without a password",
		}
	}
	if l.database == "" {
		return nil
	}
	exists, err := d.hasDatabase(ctx, l.database)
	if err == nil && !exists {
		err = &refusedLogin{proto.ErrUnknownDatabase, "Database " + l.database + " does not exist"}
	}
	return err
}

// escape is what ClickHouse undoes in the value of a query's parameter.
var escape = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`)

func (d *Door) hasDatabase(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	parameters := url.Values{"query": {"SELECT count() FROM system.databases WHERE name = {name:String}"}, "param_name": {escape.Replace(name)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.http+"/?"+parameters.Encode(), http.NoBody)
	if err != nil {
		return false, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxLoginText))
	if err != nil || resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("look for database %s: %s %s: %w", name, resp.Status, body, err)
	}
	return strings.TrimSpace(string(body)) != "0", nil
}

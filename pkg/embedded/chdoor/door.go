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
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Door is a proxy for the native port of the embedded ClickHouse, whose library aborts
// when a client fails to log in or resets an idle connection. The door answers failed logins
// itself, logs in to the engine in place of the client, and ends every connection to the
// engine in order, whatever the client does. It does not look at what follows the login.
//
// The engine would also abort at a login with a database that does not exist, and a database may
// be dropped at any time. So the door logs in without one, and then sends USE, which may fail.
type Door struct {
	listener net.Listener
	native   string // host:port of the engine
	log      *slog.Logger
	places   chan struct{}
	refusals chan struct{}

	mu    sync.Mutex
	hello map[uint64]int // bytes of the engine's hello by revision of the client's
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

// Open listens on a loopback port, 0 for a free one. native is the port of the engine behind
// it, as host:port.
func Open(port int, native string, log *slog.Logger) (*Door, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return &Door{
		listener: listener, native: native, log: log, hello: make(map[uint64]int),
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
		err = admit(hello)
	}
	var refusal *refusedLogin
	if errors.As(err, &refusal) {
		refusal.tell(ctx, client)
		return
	}
	if err != nil {
		return // the client is gone, or the engine is starting again
	}
	engine, err := d.dial(ctx)
	if err != nil {
		return
	}
	defer func() { _ = engine.Close() }()
	// Closing before the engine does would reset the connection.
	defer copyPlain(io.Discard, engine)
	defer func() { _ = engine.CloseWrite() }()
	out := bufio.NewReader(engine)
	answer, ok, err := d.enter(ctx, hello, engine, out)
	switch {
	case err != nil:
		d.log.Warn("cannot log a client in to the embedded ClickHouse", slog.Any("error", err))
	case !ok:
		_ = engine.CloseWrite()
		lastWords(client, io.MultiReader(bytes.NewReader(answer), out))
	default:
		if _, err := client.Write(answer); err != nil {
			return
		}
		if errors.As(forward(engine, client, in, out, hello.revision), &refusal) {
			refusal.tell(ctx, client)
		}
	}
}

func (d *Door) dial(ctx context.Context) (*net.TCPConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.native)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil //nolint:forcetypeassert // a dialer of "tcp" makes no other
}

// enter logs in to the engine in place of a client and chooses the client's database. It returns
// the engine's hello for the client; or the beginning of what the engine says instead, and false.
func (d *Door) enter(ctx context.Context, l login, engine *net.TCPConn, out *bufio.Reader) (answer []byte, ok bool, err error) {
	size, err := d.helloSize(ctx, l)
	if err != nil {
		return nil, false, err
	}
	_ = engine.SetReadDeadline(time.Now().Add(loginTimeout))
	defer func() { _ = engine.SetReadDeadline(time.Time{}) }()
	if _, err := engine.Write(l.withoutDatabase()); err != nil {
		return nil, false, err
	}
	begin, revision := readServerHello(out)
	if revision == 0 {
		return begin, false, nil
	}
	rest := make([]byte, max(0, size-len(begin)))
	if _, err := io.ReadFull(out, rest); err != nil {
		return nil, false, err
	}
	packets := emptyAddendum(l.revision)
	if l.database != "" {
		packets = append(packets, query(l.revision, "USE `"+identifier.Replace(l.database)+"`")...)
	}
	if _, err := engine.Write(packets); err != nil {
		return nil, false, err
	}
	if l.database != "" {
		code, err := out.ReadByte()
		if err != nil {
			return nil, false, err
		}
		if code != byte(proto.ServerCodeEndOfStream) {
			return []byte{code}, false, nil
		}
	}
	// The client speaks the older of the two revisions, so that it is one that the door knows.
	known := len(binary.AppendUvarint(nil, revision))
	begin = binary.AppendUvarint(begin[:len(begin)-known], min(revision, newestRevision))
	return append(begin, rest...), true, nil
}

// helloSize returns how many bytes the engine's hello has. Its fields depend on the revision, and
// nothing marks its end, so the first login of each revision is followed by a ping on a connection
// of its own.
func (d *Door) helloSize(ctx context.Context, l login) (int, error) {
	d.mu.Lock()
	size, ok := d.hello[l.revision]
	d.mu.Unlock()
	if ok {
		return size, nil
	}
	engine, err := d.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = engine.Close() }()
	_ = engine.SetReadDeadline(time.Now().Add(loginTimeout))
	_, err = engine.Write(append(append(l.withoutDatabase(), emptyAddendum(l.revision)...), byte(proto.ClientCodePing)))
	if err != nil {
		return 0, err
	}
	_ = engine.CloseWrite()
	said, err := io.ReadAll(engine)
	if err != nil {
		return 0, err
	}
	if len(said) < 2 || said[0] != byte(proto.ServerCodeHello) || said[len(said)-1] != byte(proto.ServerCodePong) {
		return 0, fmt.Errorf("unexpected answer %.100q", said)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hello[l.revision] = len(said) - 1
	return len(said) - 1, nil
}

// query is a query without settings and data, in the protocol of a revision.
func query(revision uint64, sql string) []byte {
	var b proto.Buffer
	version := int(revision)
	b.PutUVarInt(uint64(proto.ClientCodeQuery))
	b.PutString("") // its id
	info := proto.ClientInfo{Query: proto.ClientQueryInitial, Interface: proto.InterfaceTCP, InitialAddress: "0.0.0.0:0", ProtocolVersion: version}
	info.EncodeAware(&b, version)
	if revision >= scriptRevision {
		b.PutUVarInt(0)
		b.PutUVarInt(0)
	}
	if revision >= jwtRevision {
		b.PutBool(false)
	}
	b.PutString("") // no settings
	if revision >= rolesRevision {
		b.PutString("")
	}
	if proto.FeatureInterServerSecret.In(version) {
		b.PutString("")
	}
	proto.StageComplete.Encode(&b)
	proto.CompressionDisabled.Encode(&b)
	b.PutString(sql)
	if proto.FeatureParameters.In(version) {
		b.PutString("")
	}
	b.PutUVarInt(uint64(proto.ClientCodeData)) // an empty block: no external tables
	b.PutString("")
	for range 3 { // info, columns, rows
		b.PutUVarInt(0)
	}
	return b.Buf
}

// identifier escapes what ends a quoted identifier, or has a meaning in it.
var identifier = strings.NewReplacer("`", "\\`", `\`, `\\`)

// forward copies in both directions until the engine has closed. The client's end, in order
// or not, becomes an orderly end at the engine, which is read until it closes too: closing
// before would reset the connection. What the client sends first is the rest of its login, which the
// engine has already; if it is not complete, forward returns why.
func forward(engine, client *net.TCPConn, in, out *bufio.Reader, revision uint64) error {
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		copyPlain(client, out)
		copyPlain(io.Discard, out) // the client is gone
		_ = client.CloseRead()     // ends the other direction
	}()
	_ = client.SetReadDeadline(time.Now().Add(loginTimeout))
	err := readAddendum(in, revision)
	_ = client.SetReadDeadline(time.Time{})
	if err == nil {
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
	client                   []byte // code, name and version
	revision                 uint64 // of the protocol: the newest that the client and the door know
	database, user, password string
}

// withoutDatabase is the login of the engine's user.
func (l login) withoutDatabase() []byte {
	b := proto.Buffer{Buf: slices.Clone(l.client)}
	b.PutUVarInt(l.revision)
	b.PutString("")
	b.PutString(user)
	b.PutString("")
	return b.Buf
}

// user is the only one of the engine. It has no password.
const user = "default"

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
	lastWords(client, bytes.NewReader(r.packet()))
}

func lastWords(client *net.TCPConn, words io.Reader) {
	_ = client.SetDeadline(time.Now().Add(refusalTimeout))
	copyPlain(client, words)
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
	client := slices.Clone(p.raw)
	l := login{client: client, revision: min(p.number(), newestRevision), database: p.text(), user: p.text(), password: p.text()}
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

// Revisions of the protocol, and what is new with them.
const (
	chunkedRevision  = 54470 // the addendum names how the client sends and receives
	replicasRevision = 54471 // the addendum has the version of parallel replicas
	rolesRevision    = 54472 // a query has roles
	scriptRevision   = 54475 // a query has its place in a script
	jwtRevision      = 54476 // a query may have a token
	// newestRevision is the newest that the door knows, and so the newest that clients use.
	newestRevision = 54480
)

// emptyAddendum is what follows the hello of a client that has nothing to say.
func emptyAddendum(revision uint64) (raw []byte) {
	if revision >= uint64(proto.FeatureAddendum) {
		raw = append(raw, 0)
	}
	if revision >= chunkedRevision {
		raw = append(raw, 0, 0)
	}
	if revision >= replicasRevision {
		raw = append(raw, 0)
	}
	return raw
}

// readAddendum reads what a client sends after the hello of the engine.
func readAddendum(in *bufio.Reader, revision uint64) error {
	p := packetReader{in: in}
	if revision >= uint64(proto.FeatureAddendum) {
		p.text() // the quota key
	}
	if revision >= chunkedRevision {
		for _, direction := range []string{"send", "recv"} {
			if how := p.text(); strings.HasPrefix(how, "chunked") {
				p.err = &refusedLogin{proto.ErrNetworkError, "Incompatible protocol: " + direction + " is notchunked, client requested " + how}
			}
		}
	}
	if revision >= replicasRevision {
		p.number()
	}
	return p.err
}

// admit returns a refusedLogin unless the engine would take the user.
func admit(l login) error {
	if l.user == "" { // at which the library aborts as well
		return &refusedLogin{proto.ErrUnexpectedPacketFromClient, "unexpected packet from client: no user in Hello package"}
	}
	if l.user != user || l.password != "" {
		return &refusedLogin{
			proto.ErrAuthenticationFailed,
			l.user + ": authentication failed: the embedded ClickHouse has one user, default, without a password",
		}
	}
	return nil
}

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
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// Door is a proxy for the native port of the embedded ClickHouse, whose library aborts
// when a client fails to log in or resets an idle connection. The door answers failed logins
// itself and ends every connection to the engine in order, whatever the client does. It does
// not look at what follows the login.
type Door struct {
	listener net.Listener
	native   string // host:port of the engine
	http     string // the same, to ask which databases exist
	places   chan struct{}
}

const (
	// maxNativeClients bounds the connections; others wait in the backlog of the port.
	maxNativeClients = 1024
	// loginTimeout is how long a client may take for its login.
	loginTimeout = 10 * time.Second
	// maxLoginText bounds each text of a login.
	maxLoginText = 4 << 10
)

// Open listens on a loopback port, 0 for a free one. native and http are the ports of the
// engine behind it, as host:port.
func Open(port int, native, http string) (*Door, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return &Door{listener: listener, native: native, http: http, places: make(chan struct{}, maxNativeClients)}, nil
}

// Addr is the host:port that clients connect to.
func (d *Door) Addr() string { return d.listener.Addr().String() }

// Run serves until ctx ends and the engine has closed the connections to it.
func (d *Door) Run(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = d.listener.Close() })()
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		d.places <- struct{}{}
		conn, err := d.listener.Accept()
		if err != nil {
			return // with ctx: the listener fails for no other reason that passes
		}
		clients.Go(func() {
			defer func() { <-d.places }()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			defer conn.Close()
			d.serve(ctx, conn.(*net.TCPConn)) //nolint:forcetypeassert // a TCP listener accepts no other
		})
	}
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
		_, _ = client.Write(refusal.packet())
		return
	}
	if err != nil {
		return // the client is gone, or the engine is starting again
	}
	_ = client.SetReadDeadline(time.Time{})
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.native)
	if err != nil {
		return
	}
	engine := conn.(*net.TCPConn) //nolint:forcetypeassert // a dialer of "tcp" makes no other
	defer func() { _ = engine.Close() }()
	if _, err := engine.Write(hello.raw); err != nil {
		return
	}
	forward(engine, client, in)
}

// forward copies in both directions until the engine has closed. The client's end, in order
// or not, becomes an orderly end at the engine, which is read until it closes too: closing
// before would reset the connection.
func forward(engine, client *net.TCPConn, in io.Reader) {
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		_, _ = io.Copy(client, engine)
		_, _ = io.Copy(io.Discard, engine) // the client is gone
		_ = client.Close()
	}()
	_, _ = io.Copy(engine, in)
	_ = engine.CloseWrite()
	<-answers
}

// login is what a client says first.
type login struct {
	raw                      []byte
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

// readHello reads a login: its code, then name, version and revision of the client, then
// database, user and password.
func readHello(in *bufio.Reader) (login, error) {
	var raw bytes.Buffer
	number := func() (uint64, error) {
		n, err := binary.ReadUvarint(in)
		raw.Write(binary.AppendUvarint(nil, n))
		return n, err
	}
	text := func() (string, error) {
		n, err := number()
		if err != nil {
			return "", err
		}
		if n > maxLoginText {
			return "", &refusedLogin{proto.ErrUnexpectedPacketFromClient, "the login has a text that is too long"}
		}
		b := make([]byte, n)
		_, err = io.ReadFull(in, b)
		raw.Write(b)
		return string(b), err
	}
	code, err := number()
	if err == nil && code != uint64(proto.ClientCodeHello) {
		err = &refusedLogin{proto.ErrUnexpectedPacketFromClient, fmt.Sprintf("unexpected packet from client: expected Hello, got %d", code)}
	}
	if err != nil {
		return login{}, err
	}
	_, err = text()
	for range 3 {
		if err == nil {
			_, err = number()
		}
	}
	var texts [3]string
	for i := range texts {
		if err == nil {
			texts[i], err = text()
		}
	}
	return login{raw: raw.Bytes(), database: texts[0], user: texts[1], password: texts[2]}, err
}

// admit returns a refusedLogin unless the engine would take the login.
func (d *Door) admit(ctx context.Context, l login) error {
	if l.user != "default" && l.user != "" || l.password != "" {
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

func (d *Door) hasDatabase(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	parameters := url.Values{"query": {"SELECT count() FROM system.databases WHERE name = {name:String}"}, "param_name": {name}}
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

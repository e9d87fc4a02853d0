package chdoor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(m.Run())
}

// throughDoor runs an engine and a door in front of it until the test ends.
func throughDoor(t *testing.T) (*Door, *chengine.Engine) {
	t.Helper()
	engine := chtest.Start(t, chengine.Options{})
	door, err := Open(0, engine.NativeAddr(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); door.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return door, engine
}

func dialDoor(t *testing.T, d *Door, auth clickhouse.Auth) clickhouse.Conn {
	t.Helper()
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{d.Addr()}, Auth: auth, MaxOpenConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

const (
	oldRevision = 54058 // sends nothing after its hello but queries
	newRevision = 54488 // sends an addendum of three texts and a number
)

// hello is the hello of a client that speaks revision.
func hello(revision uint64) []byte { return helloTo("", revision) }

// helloTo names a database.
func helloTo(database string, revision uint64) []byte {
	var b proto.Buffer
	b.PutUVarInt(uint64(proto.ClientCodeHello))
	b.PutString("test")
	for _, n := range []uint64{21, 1, revision} {
		b.PutUVarInt(n)
	}
	b.PutString(database)
	b.PutString("default")
	b.PutString("")
	return b.Buf
}

// dialRaw sends a hello and awaits the beginning of the engine's.
func dialRaw(t *testing.T, d *Door, revision uint64) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write(hello(revision)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// refusal returns the code of the exception at the end of what the door said.
func refusal(t *testing.T, said []byte) proto.Error {
	t.Helper()
	at := bytes.LastIndex(said, []byte("\x0dDB::Exception"))
	if at < 5 || said[at-5] != byte(proto.ServerCodeException) {
		t.Fatalf("%q, want an exception", said)
	}
	return proto.Error(binary.LittleEndian.Uint32(said[at-4:]))
}

// The engine's library does not survive such clients where nothing stands before it. One by
// one, so that a failure names its cause.
func TestDoorShieldsTheEngine(t *testing.T) {
	door, engine := throughDoor(t)
	reset := func(t *testing.T, conn *net.TCPConn) {
		t.Helper()
		if err := conn.SetLinger(0); err != nil { // close sends a reset
			t.Error(err)
		}
		_ = conn.Close()
	}
	raw := func(sent []byte, answered bool) func(t *testing.T) {
		return func(t *testing.T) {
			conn, err := net.Dial("tcp", door.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(sent); err != nil {
				t.Error(err)
			}
			if answered {
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					t.Error(err)
				}
			}
			reset(t, conn.(*net.TCPConn))
		}
	}
	refused := func(auth clickhouse.Auth, code int32) func(t *testing.T) {
		return func(t *testing.T) {
			err := dialDoor(t, door, auth).Ping(t.Context())
			var exception *clickhouse.Exception
			if !errors.As(err, &exception) || exception.Code != code {
				t.Errorf("%v, want an exception with code %d", err, code)
			}
		}
	}
	// login sends a hello, awaits the engine's, and sends the rest of the login.
	login := func(t *testing.T, revision uint64, addendum string) *net.TCPConn {
		t.Helper()
		conn := dialRaw(t, door, revision)
		if _, err := io.WriteString(conn, addendum); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ended := func(revision uint64, addendum string) func(t *testing.T) {
		return func(t *testing.T) {
			reset(t, login(t, revision, addendum))
			conn := login(t, revision, addendum)
			if err := conn.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil { // the engine has closed
				t.Error(err)
			}
		}
	}
	told := func(addendum string, code proto.Error) func(t *testing.T) {
		return func(t *testing.T) {
			said, err := io.ReadAll(login(t, newRevision, addendum))
			if err != nil {
				t.Error(err)
			}
			if got := refusal(t, said); got != code {
				t.Errorf("code %d, want %d", got, code)
			}
		}
	}
	for name, act := range map[string]func(t *testing.T){
		"no addendum":                  ended(newRevision, ""),
		"half a quota key":             ended(newRevision, "\x05ab"),
		"half a quota key, an old one": ended(54458, "\x05ab"),
		"half a length":                ended(newRevision, "\x80"),
		"no end of the chunks":         ended(newRevision, "\x00\x0anotchunked\x0anot"),
		"no version of replicas":       ended(newRevision, "\x00\x00\x00"),
		"no version, an older one":     ended(54471, "\x00\x00\x00"),
		"chunks that it lacks":         told("\x00\x07chunked\x0anotchunked\x04", proto.ErrNetworkError),
		"chunks of answers":            told("\x00\x0anotchunked\x07chunked\x04", proto.ErrNetworkError),
		"optional chunks":              told("\x00\x10chunked_optional\x00\x04", proto.ErrNetworkError),
		"an addendum without end":      told("\xff\xff\xff\xff\x0f", proto.ErrUnexpectedPacketFromClient),
		"an escaped database":          refused(clickhouse.Auth{Database: `\x64efault`}, 81),
		"a database and a backslash":   refused(clickhouse.Auth{Database: `default\`}, 81),
		"a database and a tab":         refused(clickhouse.Auth{Database: "default\t"}, 81),
		"a database and a newline":     refused(clickhouse.Auth{Database: "default\n"}, 81),
		"a database and a return":      refused(clickhouse.Auth{Database: "default\r"}, 81),
		"a database and a zero":        refused(clickhouse.Auth{Database: "default\x00"}, 81),
		"a database that is no text":   refused(clickhouse.Auth{Database: "\xff\\N"}, 81),
		"an escaped null":              refused(clickhouse.Auth{Database: `\N`}, 81),
		"no user":                      raw(bytes.Replace(hello(oldRevision), []byte("\x07default"), []byte{0}, 1), true),
		"an unknown user":              refused(clickhouse.Auth{Username: "bob"}, 516),
		"a password":                   refused(clickhouse.Auth{Username: "default", Password: "x"}, 516),
		"an unknown database":          refused(clickhouse.Auth{Database: "nope"}, 81),
		"no login": func(t *testing.T) {
			conn, err := net.Dial("tcp", door.Addr())
			if err != nil {
				t.Fatal(err)
			}
			reset(t, conn.(*net.TCPConn))
		},
		"half a login":           raw(hello(oldRevision)[:6], false),
		"no ClickHouse client":   raw([]byte("\x99\x99\x01garbage"), true),
		"a text without end":     raw([]byte("\x00\xff\xff\xff\xff\x0f"), true),
		"a reset of an idle one": raw(hello(oldRevision), true),
		"a reset of a busy one": func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var mine net.Conn
			conn, err := clickhouse.Open(&clickhouse.Options{
				Addr: []string{door.Addr()}, MaxOpenConns: 1,
				DialContext: func(ctx context.Context, addr string) (net.Conn, error) {
					var err error
					mine, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
					return mine, err
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			rows, err := conn.Query(ctx, "SELECT number, sleepEachRow(0.01) FROM numbers(100000) SETTINGS max_block_size = 1")
			if err != nil {
				t.Fatal(err)
			}
			if !rows.Next() {
				t.Fatal(rows.Err())
			}
			reset(t, mine.(*net.TCPConn))
			_ = rows.Close()
			// The engine stops the query of a client that has gone.
			direct := chtest.Open(t, engine)
			err = retry.Do(ctx, retry.Policy{First: 20 * time.Millisecond, Max: 20 * time.Millisecond}, func(ctx context.Context) error {
				var running uint64
				if err := direct.QueryRow(ctx, "SELECT count() FROM system.processes WHERE query LIKE 'SELECT number, sleep%'").Scan(&running); err != nil || running > 0 {
					return errors.Join(err, errors.New("the query is still running"))
				}
				return nil
			}, nil)
			if err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			act(t)
			// The door's end of the connection has come through once another one works.
			if err := dialDoor(t, door, clickhouse.Auth{Database: "default"}).Ping(t.Context()); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if err := chtest.Open(t, engine).Ping(t.Context()); err != nil {
				t.Errorf("afterwards, without the door: %v (engine: %v)", err, engine.Err())
			}
		})
	}
}

// What passes the door is unchanged, in both directions.
func TestDoorForwards(t *testing.T) {
	door, _ := throughDoor(t)
	conn := dialDoor(t, door, clickhouse.Auth{Database: "default", Username: "default"})
	if err := conn.Exec(t.Context(), "CREATE TABLE n (n UInt64, s String) ENGINE = MergeTree ORDER BY n"); err != nil {
		t.Fatal(err)
	}
	batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO n")
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Close()
	const rows = 100_000
	for i := range uint64(rows) {
		if err := batch.Append(i, strings.Repeat("x", int(i%50))); err != nil {
			t.Fatal(err)
		}
	}
	if err := batch.Send(); err != nil {
		t.Fatal(err)
	}
	read, err := conn.Query(t.Context(), "SELECT n, s FROM n ORDER BY n")
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	var n, next uint64
	var s string
	for read.Next() {
		if err := read.Scan(&n, &s); err != nil {
			t.Fatal(err)
		}
		if n != next || len(s) != int(n%50) {
			t.Fatalf("row %d is %d, %q", next, n, s)
		}
		next++
	}
	if err := read.Err(); err != nil || next != rows {
		t.Errorf("%d rows, %v; want %d", next, err, rows)
	}
	if err := conn.Exec(t.Context(), "SELECT nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("wrong SQL: %v", err)
	}
}

// A database may have such a name.
func TestDoorFindsOddDatabases(t *testing.T) {
	door, engine := throughDoor(t)
	direct := chtest.Open(t, engine)
	for _, name := range []string{`a\b`, "a\tb", "a\nb", `\x64efault`, "ä'", "a`b", `a\`} {
		if err := direct.Exec(t.Context(), "CREATE DATABASE `"+strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(name)+"`"); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := dialDoor(t, door, clickhouse.Auth{Database: name}).QueryRow(t.Context(), "SELECT currentDatabase()").Scan(&got); err != nil || got != name {
			t.Errorf("%q, %v; want %q", got, err, name)
		}
	}
}

// What a client sends right after its addendum is not lost, whichever addendum its revision
// has.
func TestDoorForwardsAfterTheAddendum(t *testing.T) {
	door, _ := throughDoor(t)
	for revision, addendum := range map[uint64]string{
		54457: "", 54458: "\x00", 54469: "\x03key", 54470: "\x00\x0anotchunked\x13notchunked_optional",
		54471: "\x00\x00\x00\x04", newRevision: "\x00\x0anotchunked\x0anotchunked\x80\x01", 99999: "\x00\x00\x00\x04",
	} {
		conn := dialRaw(t, door, revision)
		if _, err := conn.Write(append([]byte(addendum), byte(proto.ClientCodePing))); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(conn)
		if err != nil || !bytes.HasSuffix(said, []byte{byte(proto.ServerCodePong)}) {
			t.Errorf("revision %d: %q, %v; want a pong at the end", revision, said, err)
		}
	}
}

// Every revision of the protocol can name a database.
func TestDoorChoosesTheDatabase(t *testing.T) {
	door, engine := throughDoor(t)
	for _, revision := range []uint64{
		oldRevision, 54060, 54372, 54401, 54406, 54429, 54441, 54442, 54448, 54449, 54453, 54458, 54459, 54460, 54461, 54462, 54469, 54470, 54471, 54472, 54473, 54474, 54475, 54476, 54477, 54478, 54479,
		54480, 54481, newRevision, 99999,
	} {
		for database, want := range map[string]proto.ServerCode{"default": proto.ServerCodePong, "nope": proto.ServerCodeException} {
			conn, err := net.Dial("tcp", door.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			rest := emptyAddendum(min(revision, newestRevision))
			if _, err := conn.Write(append(append(helloTo(database, revision), rest...), byte(proto.ClientCodePing))); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(conn)
			if err != nil || len(said) < 5 {
				t.Fatalf("revision %d, database %s: %q, %v", revision, database, said, err)
			}
			if want == proto.ServerCodeException {
				if said[0] != byte(want) || binary.LittleEndian.Uint32(said[1:]) != uint32(proto.ErrUnknownDatabase) {
					t.Errorf("revision %d: %q, want that the database is unknown", revision, said)
				}
			} else if said[0] != byte(proto.ServerCodeHello) || said[len(said)-1] != byte(want) {
				t.Errorf("revision %d: %q, want a hello and a pong", revision, said)
			}
		}
	}
	if err := engine.Err(); err != nil {
		t.Error(err)
	}
}

// A client that leaves within a packet does the engine no harm. Nor does one that falls silent there: the engine
// closes the connection in order after its receive_timeout of 300 s, too long for a test.
func TestDoorOutlivesHalfPackets(t *testing.T) {
	door, engine := throughDoor(t)
	for _, half := range []string{"\x01", "\x01\x05ab", "\x01\x00\x01", "\x02", "\x02\x00\x01"} {
		conn := dialRaw(t, door, oldRevision)
		if _, err := io.WriteString(conn, half); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if said, err := io.ReadAll(conn); err != nil { // until the engine has closed
			t.Errorf("%q: %q, %v", half, said, err)
		}
		if err := chtest.Open(t, engine).Ping(t.Context()); err != nil {
			t.Fatalf("after %q: %v (engine: %v)", half, err, engine.Err())
		}
	}
}

// A database may be dropped while clients log in to it.
func TestDoorOutlivesDroppedDatabases(t *testing.T) {
	door, engine := throughDoor(t)
	direct := chtest.Open(t, engine)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer func() { stop(); clients.Wait() }()
	var in, refused atomic.Int64
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				conn, err := net.Dial("tcp", door.Addr())
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write(helloTo("gone", oldRevision))
				switch first, _ := bufio.NewReader(conn).ReadByte(); proto.ServerCode(first) { //nolint:exhaustive // others are no answers to a login
				case proto.ServerCodeHello:
					in.Add(1)
				case proto.ServerCodeException:
					refused.Add(1)
				}
				_ = conn.Close()
			}
		})
	}
	for range 10 {
		for _, step := range []struct {
			sql     string
			outcome *atomic.Int64
		}{{"CREATE DATABASE gone", &in}, {"DROP DATABASE gone", &refused}} {
			if err := direct.Exec(t.Context(), step.sql); err != nil {
				t.Fatalf("%v (engine: %v)", err, engine.Err())
			}
			before := step.outcome.Load()
			wait.Until(t, "clients see it", func() bool { return step.outcome.Load() > before })
		}
	}
}

// The door bounds what clients cost the engine, and tells those above the bound.
func TestDoorRefusesTooManyClients(t *testing.T) {
	door, _ := throughDoor(t)
	var idle []*net.TCPConn
	for range maxNativeClients {
		idle = append(idle, dialRaw(t, door, oldRevision))
	}
	var exception *clickhouse.Exception
	if err := dialDoor(t, door, clickhouse.Auth{}).Ping(t.Context()); !errors.As(err, &exception) || exception.Code != 202 {
		t.Errorf("%v, want an exception with code 202", err)
	}
	conn, err := net.Dial("tcp", door.Addr()) // it does not say anything, either
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if said, err := io.ReadAll(conn); err != nil || refusal(t, said) != proto.ErrTooManySimultaneousQueries {
		t.Errorf("%q, %v", said, err)
	}
	_ = idle[0].Close()
	again := dialDoor(t, door, clickhouse.Auth{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := retry.Do(ctx, retry.Policy{First: 20 * time.Millisecond, Max: 20 * time.Millisecond}, again.Ping, nil); err != nil {
		t.Errorf("after one has left: %v", err)
	}
}

// An idle connection costs the process its two ends and no pipes.
func TestDoorTakesNoPipes(t *testing.T) {
	door, _ := throughDoor(t)
	const clients = 20
	for range clients {
		conn := dialRaw(t, door, oldRevision)
		if _, err := conn.Write([]byte{byte(proto.ClientCodePing)}); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(conn)
		for {
			b, err := in.ReadByte()
			if err != nil {
				t.Fatal(err)
			}
			if b == byte(proto.ServerCodePong) && in.Buffered() == 0 {
				break
			}
		}
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	pipes := 0
	for _, f := range files {
		if to, _ := os.Readlink("/proc/self/fd/" + f.Name()); strings.HasPrefix(to, "pipe:") {
			pipes++
		}
	}
	if pipes > clients { // the engine's output takes a few
		t.Errorf("%d pipes with %d clients", pipes, clients)
	}
}

// brokenListener fails so many times before it accepts.
type brokenListener struct {
	net.Listener
	failures int
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// The door outlives a lack of open files and says so once.
func TestDoorOutlivesFailedAccepts(t *testing.T) {
	engine := chtest.Start(t, chengine.Options{})
	var log bytes.Buffer
	door, err := Open(0, engine.NativeAddr(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	door.listener = &brokenListener{door.listener, 3}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); door.Run(ctx) }()
	if err := dialDoor(t, door, clickhouse.Auth{}).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	<-ended
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "too many open files") {
		t.Errorf("log: %q", got)
	}
}

// Who takes the native port for the HTTP port is told.
func TestDoorAnswersHTTP(t *testing.T) {
	door, err := Open(0, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); door.Run(ctx) }()
	defer func() { stop(); <-ended }()
	conn, err := net.Dial("tcp", door.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); !strings.Contains(string(got), "native port of ClickHouse") {
		t.Errorf("%q, %v", got, err)
	}
}

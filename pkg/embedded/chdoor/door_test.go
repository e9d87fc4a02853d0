package chdoor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(m.Run())
}

// throughDoor runs an engine and a door in front of it until the test ends.
func throughDoor(t *testing.T) (*Door, *chengine.Engine) {
	t.Helper()
	engine := chtest.Start(t, chengine.Options{})
	door, err := Open(0, engine.NativeAddr(), engine.HTTPAddr())
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

// hello is a login of an old client, which sends nothing after it but queries.
func hello(user, database string) []byte {
	var b proto.Buffer
	b.PutUVarInt(uint64(proto.ClientCodeHello))
	b.PutString("test")
	for _, n := range []uint64{21, 1, 54058} {
		b.PutUVarInt(n)
	}
	b.PutString(database)
	b.PutString(user)
	b.PutString("")
	return b.Buf
}

// Everything here aborts the engine's library where nothing stands before it. One by one, so
// that a failure names its cause.
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
	for name, act := range map[string]func(t *testing.T){
		"an unknown user":     refused(clickhouse.Auth{Username: "bob"}, 516),
		"a password":          refused(clickhouse.Auth{Username: "default", Password: "x"}, 516),
		"an unknown database": refused(clickhouse.Auth{Database: "nope"}, 81),
		"no login": func(t *testing.T) {
			conn, err := net.Dial("tcp", door.Addr())
			if err != nil {
				t.Fatal(err)
			}
			reset(t, conn.(*net.TCPConn))
		},
		"half a login":           raw(hello("default", "")[:6], false),
		"no ClickHouse client":   raw([]byte("\x99\x99\x01garbage"), true),
		"a text without end":     raw([]byte("\x00\xff\xff\xff\xff\x0f"), true),
		"a reset of an idle one": raw(hello("default", ""), true),
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

// Who takes the native port for the HTTP port is told.
func TestDoorAnswersHTTP(t *testing.T) {
	door, err := Open(0, "", "")
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

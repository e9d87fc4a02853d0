package otlphttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// pipes is a listener with in-process connections, so that time can be virtual.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

type acceptAll struct{}

func (acceptAll) Consume(context.Context, signal.Request) (signal.Result, error) {
	return signal.Result{}, nil
}

// inVirtualTime serves pipes with the default configuration while test runs.
func inVirtualTime(t *testing.T, test func(t *testing.T, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		s := newServer(DefaultConfig(), acceptAll{}, Options{}, p)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		test(t, p)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		<-time.After(2 * time.Second) // trickle notices within a second that nobody reads
	})
}

const head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\n\r\n"

// trickle writes one piece per second until a write fails.
func trickle(c net.Conn, piece string) {
	for {
		if _, err := io.WriteString(c, piece); err != nil {
			return
		}
		<-time.After(time.Second)
	}
}

func TestSlowBodyIsCutOff(t *testing.T) {
	for name, tc := range map[string]struct {
		piece string
		after time.Duration
	}{
		"a byte a second":                {"x", 10 * time.Second},
		"silence":                        {"", 10 * time.Second},
		"just fast enough, and too long": {strings.Repeat("x", 20<<10), 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, p *pipes) {
				slow := p.dial()
				defer slow.Close()
				began := time.Now()
				fmt.Fprintf(slow, head, 50<<20)
				go trickle(slow, tc.piece)
				resp, err := http.ReadResponse(bufio.NewReader(slow), nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != http.StatusRequestTimeout {
					t.Errorf("status %s, want 408", resp.Status)
				}
				if took := time.Since(began); took < tc.after || took > tc.after+3*time.Second {
					t.Errorf("cut off after %s, want %s", took, tc.after)
				}
				body, err := io.ReadAll(resp.Body)
				var st status.Status
				if err != nil || proto.Unmarshal(body, &st) != nil || !strings.Contains(st.GetMessage(), "too slowly") {
					t.Errorf("response %q, %v", body, err)
				}
				// Nothing keeps the connection open afterwards.
				if _, err := slow.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("the connection after the response: %v", err)
				}
			})
		})
	}
}

func TestSlowClientsDoNotHoldOthers(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, p *pipes) {
		for range 50 {
			slow := p.dial()
			defer slow.Close()
			fmt.Fprintf(slow, head, 50<<20)
			go trickle(slow, "x")
		}
		synctest.Wait()
		quick := p.dial()
		defer quick.Close()
		began := time.Now()
		go fmt.Fprintf(quick, head+"xyz", 3)
		resp, err := http.ReadResponse(bufio.NewReader(quick), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("response %v, %v", resp, err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the response took %s", took)
		}
	})
}

func TestSlowHeadersAndSilenceEndTheConnection(t *testing.T) {
	for name, tc := range map[string]struct {
		send  func(c net.Conn)
		after time.Duration
	}{
		"headers byte by byte": {func(c net.Conn) {
			for _, b := range []byte(fmt.Sprintf(head, 3)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}, 10 * time.Second},
		"never a request": {func(net.Conn) {}, 10 * time.Second},
		"no more requests": {func(c net.Conn) {
			_, _ = fmt.Fprintf(c, head, 0)
		}, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, p *pipes) {
				c := p.dial()
				defer c.Close()
				began := time.Now()
				go tc.send(c)
				_, _ = io.Copy(io.Discard, c)
				if took := time.Since(began); took < tc.after || took > tc.after+3*time.Second {
					t.Errorf("closed after %s, want %s", took, tc.after)
				}
			})
		})
	}
}

// The server disconnects a client that never reads its responses.
func TestUnreadAnswersEndTheConnection(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, p *pipes) {
		c := p.dial()
		defer c.Close()
		began := time.Now()
		var err error
		for err == nil {
			_, err = fmt.Fprintf(c, head, 0)
		}
		if took := time.Since(began); took > writeTimeout+3*time.Second {
			t.Errorf("held for %s", took)
		}
	})
}

package opshttp_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/opshttp"
)

// A request that announces a body and never sends it loses its connection, and
// connections of one address do not keep others out.
func TestConnectionsAreBounded(t *testing.T) {
	s := start(t, opshttp.Config{}, opshttp.Options{})
	const connections = 200
	conns := make([]net.Conn, 0, connections)
	for range connections {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		conn, err := d.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Skipf("this host does not connect from 127.0.0.2: %v", err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n") // the connection may be closed already
		conns = append(conns, conn)
	}
	if status, _ := get(t, s, "/healthz"); status != http.StatusOK {
		t.Fatalf("another address: status %d", status)
	}
	answered := 0
	deadline := time.Now().Add(30 * time.Second)
	for _, conn := range conns {
		_ = conn.SetReadDeadline(deadline)
		in := bufio.NewReader(conn)
		if resp, err := http.ReadResponse(in, nil); err == nil && resp.StatusCode == http.StatusOK {
			answered++
			resp.Body.Close()
		}
		if _, err := io.Copy(io.Discard, in); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a missing body keeps a connection open")
		}
	}
	if answered == 0 || answered > 64 {
		t.Errorf("%d of %d connections of one address were served, want at most 64", answered, connections)
	}
}

package callerror_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/metaflowys/metaflow-server/pkg/rpc/callerror"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// The texts are those of the client, so real calls show when another version of it has other ones.
func TestTextOfCalls(t *testing.T) {
	closed := ports.FreeAddress(t)
	server := grpc.NewServer()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	web := ports.Serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1))
		_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn) // until the client has read it and closes
	})
	silent := ports.Serve(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	for name, tc := range map[string]struct {
		addr, want string
		tls        bool
		within     time.Duration
	}{
		"nothing listens":  {addr: closed, want: "cannot connect: dial tcp " + closed + ": connect: connection refused: nothing listens on this address"},
		"a web server":     {addr: web, want: "it does not answer in gRPC: "},
		"no TLS":           {addr: l.Addr().String(), tls: true, want: "TLS handshake: "},
		"another service":  {addr: l.Addr().String(), want: "the server does not take such requests (unknown service metaflow.None)"},
		"a silent program": {addr: silent, within: 100 * time.Millisecond, want: "no answer in time"},
		"an unknown name":  {addr: "server.invalid:1", want: "name"},
	} {
		t.Run(name, func(t *testing.T) {
			credential := insecure.NewCredentials()
			if tc.tls {
				credential = credentials.NewTLS(nil)
			}
			conn, err := grpc.NewClient(tc.addr, grpc.WithTransportCredentials(credential))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if tc.within == 0 {
				tc.within = 20 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), tc.within)
			defer cancel()
			err = conn.Invoke(ctx, "/metaflow.None/Call", &emptypb.Empty{}, &emptypb.Empty{})
			text := callerror.Text(fmt.Errorf("call: %w", err))
			if !strings.HasPrefix(text, tc.want) && (name != "an unknown name" || !strings.Contains(text, tc.want)) {
				t.Errorf("%q, want %q (%v)", text, tc.want, err)
			}
			if strings.Contains(text, "rpc error") || strings.Contains(text, "desc =") {
				t.Errorf("%q is gRPC's", text)
			}
		})
	}
}

func TestServerEnded(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("open: %w", io.EOF),
		status.Error(codes.Unavailable, "error reading from server: EOF"),
		status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF, received prior goaway"`),
	} {
		if got, want := callerror.Text(err), "the server ended the connection"; got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

func TestText(t *testing.T) {
	for want, err := range map[string]error{
		"the connection broke: write tcp 10.0.0.2:4711->10.0.0.1:20035: write: broken pipe": status.Error(codes.Unavailable,
			"write tcp 10.0.0.2:4711->10.0.0.1:20035: write: broken pipe"),
		"Unauthenticated: shows no token": status.Error(codes.Unauthenticated, "shows no token"),
		"plain":                           errors.New("plain"),
		"DeadlineExceeded: Kafka is slow": status.Error(codes.DeadlineExceeded, "Kafka is slow"),
		"no answer in time: the server hangs or is overloaded, or another program has the port": status.Error(codes.DeadlineExceeded,
			"stream terminated by RST_STREAM with error code: CANCEL"),
		"the connection broke: read tcp 10.0.0.2:4711->10.0.0.1:20035: connection reset by peer": status.Error(codes.Unavailable,
			"error reading from server: read tcp 10.0.0.2:4711->10.0.0.1:20035: connection reset by peer"),
		"cannot connect: dial tcp 10.0.0.1:20035: i/o timeout": status.Error(codes.DeadlineExceeded,
			`received context error while waiting for new LB policy update: context deadline exceeded: last connection error: connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:20035: i/o timeout"`),
		"the connection broke: http2Client.foo": status.Error(codes.Unavailable, `connection error: desc = "transport: http2Client.foo"`),
		"it does not answer in gRPC, so it is another program, or a proxy that does not forward gRPC (unexpected HTTP status code received from server: 502 (Bad Gateway))": status.Error(codes.Unavailable,
			"unexpected HTTP status code received from server: 502 (Bad Gateway)"),
	} {
		if got := callerror.Text(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

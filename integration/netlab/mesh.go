//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

// The ports and the mark of sidecars; those of Istio's are the same ports.
const (
	outboundPort = 15001
	inboundPort  = 15006
	sidecarMark  = 1
)

// mesh puts a sidecar beside orders and one beside stock, as a service mesh does: connections
// from orders to stock are redirected to a proxy in orders' network namespace, which connects
// to stock, where a second redirection leads to a proxy that connects over loopback. It ends
// with ctx.
func mesh(ctx context.Context, l *lab, _ time.Duration) (err error) {
	orders, stock := l.hosts["orders"], l.hosts["stock"]
	out := fmt.Sprintf("type nat hook output priority -100; meta mark != %d ip daddr %s tcp dport 3000 redirect to :%d", sidecarMark, stock.ip, outboundPort)
	in := fmt.Sprintf("type nat hook prerouting priority -100; tcp dport 3000 redirect to :%d", inboundPort)
	var proxies sync.WaitGroup
	defer proxies.Wait()
	proxying, stop := context.WithCancel(ctx)
	defer stop() // also after an error
	for _, s := range []struct {
		at       *host
		chain    string
		port     int
		upstream string
	}{
		{stock, in, inboundPort, "127.0.0.1:3000"},
		{orders, out, outboundPort, fmt.Sprintf("%s:3000", stock.ip)},
	} {
		var listener net.Listener
		if err := namespaces.Enter(s.at.pid(), func() (err error) {
			listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", s.port)) //nolint:noctx // returns at once
			return err
		}); err != nil {
			return err
		}
		context.AfterFunc(proxying, func() { _ = listener.Close() })
		proxies.Go(func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				proxies.Go(func() { pass(proxying, c, s.at, s.upstream) })
			}
		})
		if err := s.at.run(fmt.Sprintf("table ip mesh { chain sidecar { %s; }\n}\n", s.chain), "nft", "-f", "-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.at.run("", "nft", "delete", "table", "ip", "mesh")) }()
	}
	<-ctx.Done()
	return nil
}

// pass connects to the upstream and copies both ways until both ends have closed.
func pass(ctx context.Context, downstream net.Conn, at *host, address string) {
	defer downstream.Close()
	dialer := net.Dialer{Timeout: 10 * time.Second, Control: func(_, _ string, raw syscall.RawConn) error {
		var marked error
		err := raw.Control(func(fd uintptr) { marked = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, sidecarMark) })
		return errors.Join(err, marked)
	}}
	var upstream net.Conn
	err := namespaces.Enter(at.pid(), func() (err error) {
		upstream, err = dialer.DialContext(ctx, "tcp4", address)
		return err
	})
	if err != nil {
		return
	}
	defer upstream.Close()
	defer context.AfterFunc(ctx, func() { _ = downstream.Close(); _ = upstream.Close() })()
	var answers sync.WaitGroup
	answers.Go(func() { move(downstream, upstream) })
	move(upstream, downstream)
	answers.Wait()
}

// move copies one way, and tells the receiver when it is over.
func move(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/metaflowys/metaflow-server/integration/bench/chain"
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
)

// brokerVariable turns this program into the broker, and advertisedVariable is the address that it tells clients.
const (
	brokerVariable     = "OVERLOAD_BROKER"
	advertisedVariable = "OVERLOAD_BROKER_ADVERTISED"
)

func maybeServeBroker() {
	measured.MaybeServe(brokerVariable, func(addr string) error {
		if _, err := broker.Start(broker.Options{Listen: addr, Advertise: os.Getenv(advertisedVariable)}); err != nil {
			return err
		}
		select {}
	})
}

// startBroker starts the embedded broker, behind a link.
func startBroker(ctx context.Context, bytesPerSecond float64, verbose bool) (*measured.Process, *link, error) {
	l, err := newLink(bytesPerSecond)
	if err != nil {
		return nil, nil, err
	}
	p, addr, err := measured.StartServing(ctx, verbose, brokerVariable, advertisedVariable+"="+l.addr())
	if err != nil {
		l.close()
		return nil, nil, err
	}
	l.target.Store(&addr)
	return p, l, nil
}

// link is a TCP proxy whose connections share a number of bytes a second towards the broker.
type link struct {
	ln     net.Listener
	target atomic.Pointer[string]
	limit  *rate.Limiter
	ctx    context.Context //nolint:containedctx // ends with the link
	cancel context.CancelFunc
	conns  sync.WaitGroup
}

const chunkBytes = 4 << 10

func newLink(bytesPerSecond float64) (*link, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{ln: ln, limit: rate.NewLimiter(rate.Limit(bytesPerSecond), chunkBytes)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.conns.Go(l.accept)
	return l, nil
}

func (l *link) addr() string { return l.ln.Addr().String() }

func (l *link) close() {
	l.cancel()
	_ = l.ln.Close()
	l.conns.Wait()
}

func (l *link) accept() {
	for {
		client, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.conns.Go(func() { l.serve(client) })
	}
}

func (l *link) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	addr := l.target.Load()
	if addr == nil {
		return
	}
	server, err := (&net.Dialer{}).DialContext(l.ctx, "tcp", *addr)
	if err != nil {
		return
	}
	both := func() { _, _ = client.Close(), server.Close() }
	defer context.AfterFunc(l.ctx, both)()
	var ways sync.WaitGroup
	ways.Go(func() {
		defer both()
		_, _ = io.Copy(client, server)
	})
	ways.Go(func() {
		defer both()
		buf := make([]byte, chunkBytes)
		for {
			n, err := client.Read(buf)
			if err != nil || l.limit.WaitN(l.ctx, n) != nil {
				return
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	ways.Wait()
}

// waitReady waits until a program reports that it is ready.
func waitReady(ctx context.Context, p *measured.Process, ops string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := p.WaitListening(ctx, ops); err != nil {
		return err
	}
	for {
		var body strings.Builder
		err := chain.Get(ctx, "http://"+ops+"/ready", &body)
		if err == nil && strings.Contains(body.String(), `"ready":true`) {
			return nil
		}
		select {
		case <-p.Done:
			return fmt.Errorf("the server ended: %s", p.Output.String())
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("the server is not ready: %s", body.String()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

package rpc

import (
	"net"
	"net/netip"
	"sync"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

// listener closes connections beyond the bounds as soon as they are accepted.
type listener struct {
	net.Listener
	server *Server

	mu     sync.Mutex
	all    int
	byPeer map[netip.Prefix]int
}

// The bounds of connections, as metrics name them.
const (
	boundConnections     = "connections"
	boundPeerConnections = "peer_connections"
)

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		network := inflight.Network(addressOf(c.RemoteAddr()).Addr())
		bound := l.enter(network)
		if bound == "" {
			return &accepted{Conn: c, leave: sync.OnceFunc(func() { l.leave(network) })}, nil
		}
		l.server.refusedConnections.WithLabelValues(bound).Inc()
		_ = c.Close()
	}
}

func (l *listener) enter(network netip.Prefix) (bound string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.all >= l.server.cfg.MaxConnections:
		return boundConnections
	case l.byPeer[network] >= l.server.cfg.MaxConnectionsPerPeer:
		return boundPeerConnections
	}
	l.all++
	l.byPeer[network]++
	return ""
}

func (l *listener) leave(network netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.byPeer[network]--; l.byPeer[network] == 0 {
		delete(l.byPeer, network)
	}
}

// connections returns how many are open.
func (l *listener) connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all
}

// accepted is a connection that counts until it is closed.
type accepted struct {
	net.Conn
	leave func()
}

func (a *accepted) Close() error {
	defer a.leave()
	return a.Conn.Close()
}

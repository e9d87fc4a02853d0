package opshttp

import (
	"net"
	"net/netip"
	"sync"
)

// listener closes connections that exceed the bounds, in total or per address, as soon as
// they are accepted.
type listener struct {
	net.Listener

	mu     sync.Mutex
	all    int
	byPeer map[netip.Addr]int
}

func bound(l net.Listener) *listener {
	return &listener{Listener: l, byPeer: make(map[netip.Addr]int)}
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := peerOf(conn)
		if l.enter(from) {
			return &accepted{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		_ = conn.Close()
	}
}

// peerOf returns what counts as one address: an IPv4 address or an IPv6 /64.
func peerOf(conn net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	from := at.Addr().Unmap().WithZone("")
	if from.Is6() {
		if network, err := from.Prefix(64); err == nil {
			from = network.Addr()
		}
	}
	return from
}

func (l *listener) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConnections || l.byPeer[from] >= maxConnectionsOfPeer {
		return false
	}
	l.all++
	l.byPeer[from]++
	return true
}

func (l *listener) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.byPeer[from]--; l.byPeer[from] == 0 {
		delete(l.byPeer, from)
	}
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

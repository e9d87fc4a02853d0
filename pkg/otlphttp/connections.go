package otlphttp

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

// Names of the connection bounds in metrics.
const (
	boundConnections     = "connections"
	boundPeerConnections = "peer_connections"
)

// connections bounds the number of connections, in total and per address. A connection is
// idle before its request headers have arrived, between requests, and while the rest of a
// refused request is drained. Over the bound of an address, the longest idle connection
// of that address is closed; over the total bound, one of the address with the most
// connections. So a client that opens many connections closes its own.
//
// Closing an idle connection may race with a request that is just arriving. HTTP clients
// handle this race, because every server has an idle timeout.
type connections struct {
	mu        sync.Mutex
	max       int
	maxOfPeer int
	draining  bool
	open      int
	all       map[net.Conn]*connection // until closed, including evicted ones
	peers     map[netip.Prefix]*connectionsOfPeer
	turns     uint64 // increases with each idle connection, to order them
}

// connectionsOfPeer are the connections of one address.
type connectionsOfPeer struct {
	network netip.Prefix
	open    int
	idle    list.List // of *connection, longest idle first
}

type connection struct {
	conn    net.Conn
	peer    *inflight.Peer
	of      *connectionsOfPeer
	evicted bool
	idle    *list.Element // nil while a request is served
	turn    uint64        // order of becoming idle
	// multiplexes is set for HTTP/2. Such a connection becomes idle before its last
	// response is flushed, so drain must not close it.
	multiplexes bool
}

func newConnections(most, mostOfPeer int) *connections {
	return &connections{max: most, maxOfPeer: mostOfPeer, all: map[net.Conn]*connection{}, peers: map[netip.Prefix]*connectionsOfPeer{}}
}

// add counts a connection from network. The connection closes peer when it closes.
func (c *connections) add(conn net.Conn, network netip.Prefix, peer *inflight.Peer) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.peers[network]
	if of == nil {
		of = &connectionsOfPeer{network: network}
		c.peers[network] = of
	}
	added := &connection{conn: conn, peer: peer, of: of}
	c.all[conn] = added
	c.open++
	of.open++
	return added
}

// multiplexes records that k speaks HTTP/2.
func (c *connections) multiplexes(k *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.multiplexes = true
}

// lingers lets k be closed in favor of other connections, until resumes.
func (c *connections) lingers(k *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !k.evicted {
		c.rest(k)
	}
}

func (c *connections) resumes(k *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake(k)
}

// changed implements http.Server.ConnState. It returns the connection to close, if any,
// and the exceeded bound.
func (c *connections) changed(conn net.Conn, state http.ConnState) (evict net.Conn, over string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.all[conn]
	if k == nil {
		return nil, ""
	}
	c.wake(k)
	if state == http.StateClosed || state == http.StateHijacked {
		delete(c.all, conn)
		k.peer.Close()
		c.leave(k)
		return nil, ""
	}
	if k.evicted {
		return nil, ""
	}
	if state == http.StateNew || state == http.StateIdle {
		c.rest(k)
	}
	var chosen *connection
	switch {
	case k.of.open > c.maxOfPeer:
		chosen, over = c.longestIdle(k.of), boundPeerConnections
	case c.open > c.max:
		chosen, over = c.longestIdle(c.largest()), boundConnections
	}
	return c.evict(chosen), over
}

// rest marks k idle. The caller of rest and of the methods below, except drain, holds
// c.mu.
func (c *connections) rest(k *connection) {
	c.wake(k)
	c.turns++
	k.turn = c.turns
	k.idle = k.of.idle.PushBack(k)
}

func (c *connections) wake(k *connection) {
	if k.idle != nil {
		k.of.idle.Remove(k.idle)
		k.idle = nil
	}
}

// leave stops counting k.
func (c *connections) leave(k *connection) {
	if k.evicted {
		return
	}
	k.evicted = true
	c.open--
	if k.of.open--; k.of.open == 0 {
		delete(c.peers, k.of.network)
	}
}

func (c *connections) evict(k *connection) net.Conn {
	if k == nil {
		return nil
	}
	c.wake(k)
	c.leave(k)
	return k.conn
}

// largest returns the address with the most connections among those with an idle one, or
// nil. Among equals it returns the one with the longest idle connection.
func (c *connections) largest() *connectionsOfPeer {
	var most *connectionsOfPeer
	var first *connection
	for _, p := range c.peers {
		k := c.longestIdle(p)
		if k == nil || most != nil && (p.open < most.open || p.open == most.open && k.turn > first.turn) {
			continue
		}
		most, first = p, k
	}
	return most
}

// longestIdle returns the connection of p to close first, or nil if none is idle.
func (c *connections) longestIdle(p *connectionsOfPeer) *connection {
	if p == nil {
		return nil
	}
	for e := p.idle.Front(); e != nil; e = e.Next() {
		k, _ := e.Value.(*connection)
		if !c.draining || !k.multiplexes {
			return k
		}
	}
	return nil
}

// drain closes the idle connections, now and as others become idle. It leaves HTTP/2
// connections to http.Server.Shutdown, which sends their clients GOAWAY.
func (c *connections) drain() {
	c.mu.Lock()
	c.max, c.draining = 0, true
	c.mu.Unlock()
	for {
		c.mu.Lock()
		conn := c.evict(c.longestIdle(c.largest()))
		c.mu.Unlock()
		if conn == nil {
			return
		}
		closeNow(conn)
	}
}

// closeNow closes conn without a TLS close notification, which would wait for a client
// that does not read.
func closeNow(conn net.Conn) {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	_ = conn.Close()
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

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

// The bounds of connections, as metrics name them.
const (
	boundConnections     = "connections"
	boundPeerConnections = "peer_connections"
)

// connections bounds how many there are, in all and from each address. A connection is idle until
// the headers of a request have come, between requests, and while the rest of a refused request is
// read. Over the bound of an address, the one of it that has been idle the longest is closed; over
// that of all, one of the address that has the most. So whoever opens many closes its own.
//
// Closing a connection may meet a request that is just arriving on it. HTTP
// clients know this race from every server's idle timeout.
type connections struct {
	mu        sync.Mutex
	max       int
	maxOfPeer int
	draining  bool
	open      int
	all       map[net.Conn]*connection // until they are closed, evicted ones too
	peers     map[netip.Prefix]*connectionsOfPeer
	turns     uint64 // orders when connections became idle
}

// connectionsOfPeer are those of one address.
type connectionsOfPeer struct {
	network netip.Prefix
	open    int
	idle    list.List // of *connection, the longest idle first
}

type connection struct {
	conn    net.Conn
	peer    *inflight.Peer
	of      *connectionsOfPeer
	evicted bool
	idle    *list.Element // nil while a request is served
	turn    uint64        // when it became idle
	// multiplexes says that it speaks HTTP/2. Such a connection becomes idle before its
	// last answer is flushed, so it is not for us to close it then.
	multiplexes bool
}

func newConnections(most, mostOfPeer int) *connections {
	return &connections{max: most, maxOfPeer: mostOfPeer, all: map[net.Conn]*connection{}, peers: map[netip.Prefix]*connectionsOfPeer{}}
}

// add counts a connection from network. peer is closed when the connection is.
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

// multiplexes notes that k speaks HTTP/2.
func (c *connections) multiplexes(k *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.multiplexes = true
}

// lingers makes k one that may be closed for others, until resumes.
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

// changed takes what http.Server.ConnState says. It returns the connection that is to be closed,
// if any, and the bound that was passed.
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

// rest needs c.mu, as do all below but drain.
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

// largest returns the address with the most connections of those that have one to close, nil when
// none has. Among equals it is the one whose connection has been idle the longest.
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

// longestIdle returns the connection of p that may be closed, nil when all are being served.
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

// drain closes all that serve no request, now and as soon as they have none. Those of
// HTTP/2 it leaves to http.Server.Shutdown, which tells their clients to send no more.
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

// closeNow closes conn without the farewell of TLS, which waits for a client that does not
// read.
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

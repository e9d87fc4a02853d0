// Package packet reads the DNS packets of a network namespace from an AF_PACKET
// socket.
//
// A [Conn] sees the UDP packets that the namespace sends to port 53 or receives
// from it, on all devices. A filter in the kernel drops all others before they
// are copied: other protocols, other ports, packets received for port 53 (those
// of a resolver's clients), and later fragments. So an idle Conn costs no CPU
// time of its own; the kernel runs the filter for every packet. Of IPv6
// extension headers only fragments are considered.
//
// The kernel queues what passes the filter until Read, in a bounded buffer, and
// counts what did not fit. It stamps each packet, so Read need not be prompt.
// Packets that the namespace forwards pass the filter, too: the caller compares
// their addresses with its own. A packet that passes several devices (a bridge
// and its port, a VLAN and its parent) comes once for each.
//
// Open needs CAP_NET_RAW, a buffer beyond the system's limit CAP_NET_ADMIN. A
// Conn and a Buffer each belong to one goroutine at a time; one Buffer serves
// any number of Conns.
package packet

import "errors"

var (
	// ErrPermission means that the process lacks CAP_NET_RAW.
	ErrPermission = errors.New("capability CAP_NET_RAW is missing")
	// ErrUnsupported means that this kernel has no packet sockets.
	ErrUnsupported = errors.New("kernel has no packet sockets")
)

// Packet is one captured packet.
type Packet struct {
	Time      int64  // Unix time in nanoseconds at which the kernel saw it
	Outgoing  bool   // sent by the namespace, not received
	Interface int    // index of the device
	Data      []byte // from the IP header on; valid during the visit only
}

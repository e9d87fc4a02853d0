// Package sockdiag lists the kernel's TCP sockets over netlink's sock_diag.
//
// A [Conn] belongs to the network namespace in which it was opened, whatever
// namespace the thread that uses it is in later. It holds two netlink sockets:
// one for dumps of the living sockets and, after Subscribe, one for the
// kernel's destroy notifications. Neither needs a privilege; only a receive
// buffer beyond the system's limit does (CAP_NET_ADMIN).
//
// A dump allocates nothing per socket. Messages are parsed in place from a
// [Buffer] that the caller owns, into one flow.Socket that the visitor may use
// only during the call. A Conn and a Buffer each belong to one goroutine at a
// time; one Buffer serves any number of Conns.
//
// The size of the kernel's tcp_info depends on its version. Fields that an
// older kernel does not send have the values that flow.Info documents.
// Malformed messages are errors, never panics.
package sockdiag

import (
	"errors"

	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

var (
	// ErrOverrun means that the receive buffer overran: the kernel dropped
	// destroy notifications, and nothing tells of which sockets. Notifications
	// received before and after it are sound.
	ErrOverrun = netlink.ErrOverrun
	// ErrUnsupported means that this kernel cannot list TCP sockets: it is not
	// Linux, or it lacks tcp_diag.
	ErrUnsupported = errors.New("kernel cannot list TCP sockets")
	// ErrMalformed means that a message does not match the kernel's headers.
	ErrMalformed = netlink.ErrMalformed
)

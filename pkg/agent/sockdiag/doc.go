// Package sockdiag asks the kernel for its TCP sockets, over netlink's sock_diag.
//
// A [Conn] belongs to the network namespace in which it was opened, whatever namespace
// the thread that uses it later is in. It has two sockets of the kernel's: one for dumps of what lives, the other,
// after Subscribe, for the last words of what is destroyed. Neither needs a privilege;
// only a receive buffer beyond the system's limit does (CAP_NET_ADMIN).
//
// Nothing is allocated per socket of the dump: messages are parsed in place from a [Buffer] that
// the caller owns, into one flow.Socket that is the visitor's for the call. A Conn and a Buffer
// belong to one goroutine at a time; a Buffer serves any number of Conns.
//
// What bytes the kernel's tcp_info has depends on its version; fields that an older one does not send are left
// as flow.Info says. Malformed messages are errors, never panics.
package sockdiag

import "errors"

var (
	// ErrOverrun says that the kernel had more to say than the receive buffer held: last words were
	// lost, nobody knows whose. What came before and comes after it is sound.
	ErrOverrun = errors.New("receive buffer overrun")
	// ErrUnsupported says that this kernel cannot be asked for TCP sockets: it is not Linux, or has no
	// tcp_diag.
	ErrUnsupported = errors.New("kernel cannot list TCP sockets")
	// ErrMalformed is of messages that are not what the kernel's headers say.
	ErrMalformed = errors.New("malformed message")
)

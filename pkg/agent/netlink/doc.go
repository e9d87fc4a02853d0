// Package netlink is the part of the kernel's netlink protocol that sockdiag and
// conntrack share: sockets, dumps, queued reports, and the framing of messages
// and attributes (linux/netlink.h).
//
// A [Socket] belongs to the network namespace of the thread that opened it,
// whatever namespace the thread that uses it is in later. Messages are read into
// a [Buffer] of the caller and parsed in place: visitors may use what they are
// given only during the call. Malformed messages are errors, never panics.
package netlink

import "errors"

var (
	// ErrUnsupported means that the kernel lacks the protocol.
	ErrUnsupported = errors.New("kernel lacks the netlink protocol")
	// ErrOverrun means that the receive buffer overran: the kernel dropped
	// reports, and nothing tells which. Those received before and after it are
	// sound.
	ErrOverrun = errors.New("receive buffer overrun")
	// ErrMalformed means that a message does not match the kernel's headers.
	ErrMalformed = errors.New("malformed message")
)

// Package conntrack reads the translated connections of a network namespace
// from the kernel's connection tracking, over netlink.
//
// A [Conn] belongs to the network namespace in which it was opened. Dump lists
// the translated connections that exist; after that the kernel reports each new
// one, which Read returns. A filter in the kernel drops the reports of
// connections whose addresses are not translated. TCP counts, and UDP to port
// 53; the rest is skipped.
//
// Open needs CAP_NET_ADMIN. Messages are parsed in place from a [Buffer] into
// one nat.Connection that the visitor may use only during the call. A Conn and
// a Buffer each belong to one goroutine at a time; one Buffer serves any number
// of Conns. Malformed messages are errors, never panics.
package conntrack

import (
	"errors"

	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

var (
	// ErrPermission means that the process lacks CAP_NET_ADMIN.
	ErrPermission = errors.New("capability CAP_NET_ADMIN is missing")
	// ErrAbsent means that the kernel tracks no connections, so it translates
	// none.
	ErrAbsent = errors.New("kernel tracks no connections")
	// ErrUnsupported means that the kernel tracks connections but does not
	// list them: the module nf_conntrack_netlink is missing.
	ErrUnsupported = errors.New("kernel does not list tracked connections")
	// ErrOverrun means that the receive buffer overran: reports were lost.
	ErrOverrun = netlink.ErrOverrun
	// ErrMalformed means that a message does not match the kernel's headers.
	ErrMalformed = netlink.ErrMalformed
)

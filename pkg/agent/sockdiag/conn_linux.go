package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

const (
	// kindDumpAll is TCPDIAG_GETSOCK of linux/inet_diag.h, the older request.
	// The kernel answers it for both address families in one walk of its table;
	// the newer request takes a walk per family. On a machine with many
	// namespaces, which share one large table, the walk dominates the cost.
	kindDumpAll = 18
	// kindDump is SOCK_DIAG_BY_FAMILY.
	kindDump = unix.SOCK_DIAG_BY_FAMILY
)

// States is a set of flow.State.
type States uint32

// Set returns the set that holds the given states.
func Set(states ...flow.State) States {
	var s States
	for _, state := range states {
		s |= 1 << state
	}
	return s
}

// Listening holds listening sockets only. Connections holds every state that a
// flow.Table observes; it leaves out connections that ended and handshakes that
// are not complete.
var (
	Listening   = Set(flow.StateListen)
	Connections = Listening | Set(flow.StateEstablished, flow.StateSynSent, flow.StateFinWait1, flow.StateFinWait2,
		flow.StateCloseWait, flow.StateLastAck, flow.StateClosing)
)

// Buffer holds the memory that messages are read into. Use NewBuffer.
type Buffer struct {
	*netlink.Buffer
	socket flow.Socket
}

// NewBuffer returns a buffer of about 128 KiB.
func NewBuffer() *Buffer { return &Buffer{Buffer: netlink.NewBuffer()} }

// Conn queries one network namespace. Use Open.
type Conn struct {
	dump, destroyed netlink.Socket
	sequence        uint32
	perFamily       bool // the kernel does not know kindDumpAll
}

// Open returns a Conn for the network namespace of the calling thread. It
// returns ErrUnsupported when the kernel has no sock_diag.
func Open() (*Conn, error) {
	dump, err := netlink.OpenDump(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, unsupported(err)
	}
	return &Conn{dump: dump, destroyed: netlink.Closed}, nil
}

// unsupported says what the kernel lacks when it lacks netlink's protocol.
func unsupported(err error) error {
	if errors.Is(err, netlink.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Subscribe makes the kernel queue a notification for ReadDestroyed whenever it
// destroys a TCP socket. The calling thread must be in the namespace in which
// Open was called. receiveBuffer bounds the queue in bytes; one notification
// takes 1 to 2.5 KB of it. Without CAP_NET_ADMIN the system's limit
// (net.core.rmem_max) applies. Subscribe returns the number of bytes that the
// kernel granted.
func (c *Conn) Subscribe(receiveBuffer int) (granted int, err error) {
	if c.destroyed != netlink.Closed {
		return 0, errors.New("already subscribed")
	}
	s, err := netlink.OpenReports(unix.NETLINK_SOCK_DIAG, receiveBuffer)
	if err != nil {
		return 0, unsupported(err)
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if granted, err = s.ReceiveBuffer(); err != nil {
		return 0, err
	}
	for _, group := range [...]int{unix.SKNLGRP_INET_TCP_DESTROY, unix.SKNLGRP_INET6_TCP_DESTROY} {
		if err := s.Join(group); err != nil {
			return 0, fmt.Errorf("join group %d of destroyed sockets: %w", group, err)
		}
	}
	c.destroyed = s
	return granted, nil
}

// Close closes both netlink sockets, and with them the reference to the
// namespace.
func (c *Conn) Close() {
	c.dump.Close()
	c.destroyed.Close()
	c.dump, c.destroyed = netlink.Closed, netlink.Closed
}

// Dump calls visit for each TCP socket in one of the states. It blocks on the
// kernel for about 2 us a socket. visit must not keep the socket it is given.
// After an error the visited sockets are sound but incomplete.
func (c *Conn) Dump(b *Buffer, states States, visit func(*flow.Socket)) error {
	if !c.perFamily {
		err := c.request(b, kindDumpAll, unix.AF_INET, states, visit)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, ErrUnsupported) {
			return err
		}
	}
	// A kernel that lacks the older request refuses it before it returns any
	// socket.
	if err := c.request(b, kindDump, unix.AF_INET, states, visit); err != nil {
		return err
	}
	c.perFamily = true
	err := c.request(b, kindDump, unix.AF_INET6, states, visit)
	if errors.Is(err, ErrUnsupported) {
		return nil // a kernel without IPv6
	}
	return err
}

func (c *Conn) request(b *Buffer, kind uint16, family byte, states States, visit func(*flow.Socket)) error {
	c.sequence++
	var req [netlink.HeaderSize + 56 + 4]byte // both requests have nearly the same layout and size
	n := netlink.HeaderSize + 56
	body := req[netlink.HeaderSize:]
	body[0] = family
	if kind == kindDumpAll { // struct inet_diag_req
		body[3] = 1 << (attrInfo - 1)
		binary.NativeEndian.PutUint32(body[52:], uint32(states))
		n += 4
	} else { // struct inet_diag_req_v2
		body[1] = unix.IPPROTO_TCP
		body[2] = 1 << (attrInfo - 1)
		binary.NativeEndian.PutUint32(body[4:], uint32(states))
	}
	err := c.dump.Dump(b.Buffer, req[:n], kind, c.sequence, b.visitor(visit))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: the module tcp_diag or inet_diag is missing: %w", ErrUnsupported, err)
	}
	return err
}

// visitor parses messages and passes on their sockets.
func (b *Buffer) visitor(visit func(*flow.Socket)) func(netlink.Message) error {
	return func(m netlink.Message) error {
		if m.Kind != kindDump && m.Kind != kindDumpAll {
			return nil
		}
		if err := parse(m.Payload, &b.socket); err != nil {
			return err
		}
		visit(&b.socket)
		return nil
	}
}

// ReadDestroyed calls visit for the final state of each socket destroyed since
// the previous call. It does not block. It reads at most about limit
// notifications, so that a namespace in which sockets die faster than they are
// read does not starve the others; more reports whether some may be left.
// ErrOverrun means that notifications were lost; the ones that remain come with
// the next call.
func (c *Conn) ReadDestroyed(b *Buffer, limit int, visit func(*flow.Socket)) (n int, more bool, err error) {
	return c.destroyed.Read(b.Buffer, limit, b.visitor(visit))
}

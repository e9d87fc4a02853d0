package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
)

const (
	// kindDumpAll is TCPDIAG_GETSOCK of linux/inet_diag.h, the older request.
	// The kernel answers it for both address families in one walk of its table;
	// the newer request takes a walk per family. On a machine with many
	// namespaces, which share one large table, the walk dominates the cost.
	kindDumpAll = 18
	// kindDump is SOCK_DIAG_BY_FAMILY.
	kindDump = unix.SOCK_DIAG_BY_FAMILY

	flagDump = unix.NLM_F_REQUEST | unix.NLM_F_DUMP

	// dumpBuffer is twice the size of the largest answer that the kernel builds
	// when it is offered that much room.
	dumpBuffer = 64 << 10
	// notificationBatch is the number of notifications that one system call
	// reads. notificationSize is the room for each: the kernel sends about 400
	// bytes, and tcp_info grows by some tens of bytes a year.
	notificationBatch = 64
	notificationSize  = 1024

	// receiveTimeoutSeconds bounds the wait for a dump that the kernel does not
	// answer.
	receiveTimeoutSeconds = 5
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
	dump          []byte
	notifications []byte
	vectors       [notificationBatch]unix.Iovec
	messages      [notificationBatch]message
	socket        flow.Socket
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// NewBuffer returns a buffer of about 128 KiB.
func NewBuffer() *Buffer {
	return &Buffer{dump: make([]byte, dumpBuffer), notifications: make([]byte, notificationBatch*notificationSize)}
}

// Conn queries one network namespace. Use Open.
type Conn struct {
	dump, destroyed int // netlink file descriptors, -1 when closed
	sequence        uint32
	perFamily       bool // the kernel does not know kindDumpAll
}

// Open returns a Conn for the network namespace of the calling thread. It
// returns ErrUnsupported when the kernel has no sock_diag.
func Open() (*Conn, error) {
	fd, err := open()
	if err != nil {
		return nil, err
	}
	timeout := unix.Timeval{Sec: receiveTimeoutSeconds}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		closeFile(fd)
		return nil, fmt.Errorf("set receive timeout: %w", err)
	}
	return &Conn{dump: fd, destroyed: -1}, nil
}

func open() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		closeFile(fd)
		return -1, fmt.Errorf("bind netlink socket: %w", err)
	}
	return fd, nil
}

// Subscribe makes the kernel queue a notification for ReadDestroyed whenever it
// destroys a TCP socket. The calling thread must be in the namespace in which
// Open was called. receiveBuffer bounds the queue in bytes; one notification
// takes 1 to 2.5 KB of it. Without CAP_NET_ADMIN the system's limit
// (net.core.rmem_max) applies. Subscribe returns the number of bytes that the
// kernel granted.
func (c *Conn) Subscribe(receiveBuffer int) (granted int, err error) {
	if c.destroyed >= 0 {
		return 0, errors.New("already subscribed")
	}
	fd, err := open()
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			closeFile(fd)
		}
	}()
	// The kernel doubles the value for its own bookkeeping and reports the
	// doubled one.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2); err != nil {
			return 0, fmt.Errorf("set receive buffer: %w", err)
		}
	}
	granted, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0, fmt.Errorf("get receive buffer: %w", err)
	}
	for _, group := range [...]int{unix.SKNLGRP_INET_TCP_DESTROY, unix.SKNLGRP_INET6_TCP_DESTROY} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return 0, fmt.Errorf("join group %d of destroyed sockets: %w", group, err)
		}
	}
	c.destroyed = fd
	return granted, nil
}

// Close closes both netlink sockets, and with them the reference to the
// namespace.
func (c *Conn) Close() {
	closeFile(c.dump)
	if c.destroyed >= 0 {
		closeFile(c.destroyed)
	}
	c.dump, c.destroyed = -1, -1
}

// closeFile ignores the error: the descriptor was only read, so closing it
// cannot lose data.
func closeFile(fd int) { _ = unix.Close(fd) }

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
	var req [headerSize + 56 + 4]byte // both requests have nearly the same layout and size
	n := headerSize + 56
	req[headerSize] = family
	if kind == kindDumpAll { // struct inet_diag_req
		req[headerSize+3] = 1 << (attrInfo - 1)
		binary.NativeEndian.PutUint32(req[headerSize+52:], uint32(states))
		n += 4
	} else { // struct inet_diag_req_v2
		req[headerSize+1] = unix.IPPROTO_TCP
		req[headerSize+2] = 1 << (attrInfo - 1)
		binary.NativeEndian.PutUint32(req[headerSize+4:], uint32(states))
	}
	binary.NativeEndian.PutUint32(req[0:], uint32(n))
	binary.NativeEndian.PutUint16(req[4:], kind)
	binary.NativeEndian.PutUint16(req[6:], flagDump)
	binary.NativeEndian.PutUint32(req[8:], c.sequence)
	if err := unix.Sendto(c.dump, req[:n], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send dump request: %w", err)
	}
	for {
		n, err := receive(c.dump, b.dump)
		if err != nil {
			return fmt.Errorf("receive dump: %w", err)
		}
		done, err := b.parseDump(b.dump[:n], c.sequence, visit)
		if err != nil {
			return fmt.Errorf("read dump: %w", err)
		}
		if done {
			return nil
		}
	}
}

func receive(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOBUFS) {
			return 0, ErrOverrun
		}
		return n, err
	}
}

// parseDump visits the sockets in one part of a dump, and reports whether it
// was the last part.
func (b *Buffer) parseDump(in []byte, sequence uint32, visit func(*flow.Socket)) (done bool, err error) {
	for len(in) > 0 {
		h, payload, rest, err := next(in)
		if err != nil {
			return false, err
		}
		in = rest
		if h.sequence != sequence {
			continue // left over from an abandoned dump
		}
		switch h.kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, dumpResult(payload)
		case kindDump, kindDumpAll:
			if err := parse(payload, &b.socket); err != nil {
				return false, err
			}
			visit(&b.socket)
		}
	}
	return false, nil
}

// dumpResult reads the status in the last message of a dump.
func dumpResult(payload []byte) error {
	if len(payload) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(payload))
	switch unix.Errno(errno) {
	case 0:
		return nil
	case unix.ENOENT, unix.EPROTONOSUPPORT:
		return fmt.Errorf("%w: the module tcp_diag or inet_diag is missing: %w", ErrUnsupported, unix.Errno(errno))
	default:
		return unix.Errno(errno)
	}
}

// ReadDestroyed calls visit for the final state of each socket destroyed since
// the previous call. It does not block. It reads at most about limit
// notifications, so that a namespace in which sockets die faster than they are
// read does not starve the others; more reports whether some may be left.
// ErrOverrun means that notifications were lost; the ones that remain come with
// the next call.
func (c *Conn) ReadDestroyed(b *Buffer, limit int, visit func(*flow.Socket)) (n int, more bool, err error) {
	for n < limit {
		for i := range b.messages {
			b.vectors[i].Base = &b.notifications[i*notificationSize]
			b.vectors[i].SetLen(notificationSize)
			b.messages[i] = message{}
			b.messages[i].header.Iov = &b.vectors[i]
			b.messages[i].header.SetIovlen(1)
		}
		got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.destroyed), uintptr(unsafe.Pointer(&b.messages)), notificationBatch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return n, false, nil
		case unix.ENOBUFS:
			return n, true, ErrOverrun
		default:
			return n, false, fmt.Errorf("receive destroy notification: %w", errno)
		}
		for i := range b.messages[:got] {
			m := &b.messages[i]
			if m.header.Flags&unix.MSG_TRUNC != 0 {
				return n, true, fmt.Errorf("receive destroy notification: %w: more than %d bytes", ErrMalformed, notificationSize)
			}
			notification := b.notifications[i*notificationSize:][:m.length]
			if err := b.parseNotification(notification, visit); err != nil {
				return n, true, fmt.Errorf("read destroy notification: %w", err)
			}
			n++
		}
		if got < notificationBatch {
			return n, false, nil
		}
	}
	return n, true, nil
}

func (b *Buffer) parseNotification(in []byte, visit func(*flow.Socket)) error {
	for len(in) > 0 {
		h, payload, rest, err := next(in)
		if err != nil {
			return err
		}
		in = rest
		if h.kind != kindDump {
			continue
		}
		if err := parse(payload, &b.socket); err != nil {
			return err
		}
		visit(&b.socket)
	}
	return nil
}

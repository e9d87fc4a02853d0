package netlink

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// dumpBuffer is twice the size of the largest answer that the kernel builds
	// when it is offered that much room.
	dumpBuffer = 64 << 10
	// reportBatch is the number of reports that one system call reads.
	// reportSize is the room for each: connection tracking sends 200 to 400
	// bytes, sock_diag about 400, and tcp_info grows by some tens of bytes a year.
	reportBatch = 64
	reportSize  = 1024

	// receiveTimeoutSeconds bounds the wait for a dump that the kernel does not
	// answer.
	receiveTimeoutSeconds = 5
)

// Buffer holds the memory that messages are read into. It belongs to one
// goroutine at a time and serves any number of sockets.
type Buffer struct {
	dump     []byte
	reports  []byte
	vectors  [reportBatch]unix.Iovec
	messages [reportBatch]message
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// NewBuffer returns a buffer of about 128 KiB.
func NewBuffer() *Buffer {
	return &Buffer{dump: make([]byte, dumpBuffer), reports: make([]byte, reportBatch*reportSize)}
}

// Socket is a netlink socket, or Closed.
type Socket int

// Closed is a Socket that is not open.
const Closed Socket = -1

// OpenDump returns a socket for dumps, whose reads block.
func OpenDump(protocol int) (Socket, error) {
	s, err := open(protocol, 0)
	if err != nil {
		return Closed, err
	}
	timeout := unix.Timeval{Sec: receiveTimeoutSeconds}
	if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		s.Close()
		return Closed, fmt.Errorf("set receive timeout: %w", err)
	}
	return s, nil
}

// OpenReports returns a socket for reports. receiveBuffer bounds the bytes of
// reports that the kernel queues; without CAP_NET_ADMIN the system's limit
// (net.core.rmem_max) applies.
func OpenReports(protocol, receiveBuffer int) (Socket, error) {
	s, err := open(protocol, unix.SOCK_NONBLOCK)
	if err != nil {
		return Closed, err
	}
	// The kernel doubles the value for its own bookkeeping.
	if unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2) != nil {
		if err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2); err != nil {
			s.Close()
			return Closed, fmt.Errorf("set receive buffer: %w", err)
		}
	}
	return s, nil
}

func open(protocol, flags int) (Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, protocol)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return Closed, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return Closed, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		Socket(fd).Close()
		return Closed, fmt.Errorf("bind netlink socket: %w", err)
	}
	return Socket(fd), nil
}

// Close closes the socket, and with it the reference to the namespace. It
// ignores the error: the descriptor was only read, so closing it loses no data.
func (s Socket) Close() {
	if s != Closed {
		_ = unix.Close(int(s))
	}
}

// Join makes the kernel queue the reports of a multicast group.
func (s Socket) Join(group int) error {
	return unix.SetsockoptInt(int(s), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
}

// ReceiveBuffer returns the bytes of reports that the kernel queues.
func (s Socket) ReceiveBuffer() (int, error) {
	n, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0, fmt.Errorf("get receive buffer: %w", err)
	}
	return n, nil
}

// Dump sends a request, of which it fills in the first HeaderSize bytes, and
// calls visit for each message of the answer. Sequence numbers tell the answer
// from that of an abandoned dump. An error of the kernel is a unix.Errno.
func (s Socket) Dump(b *Buffer, request []byte, kind uint16, sequence uint32, visit func(Message) error) error {
	putDump(request, kind, sequence)
	if err := unix.Sendto(int(s), request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send dump request: %w", err)
	}
	for {
		n, err := unix.Read(int(s), b.dump)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("receive dump: %w", ErrOverrun)
		case err != nil:
			return fmt.Errorf("receive dump: %w", err)
		}
		done, result, err := visitDump(b.dump[:n], sequence, visit)
		switch {
		case err != nil:
			return fmt.Errorf("read dump: %w", err)
		case result != 0:
			return fmt.Errorf("read dump: %w", unix.Errno(result))
		case done:
			return nil
		}
	}
}

// Read calls visit for each message reported since the previous call. It does
// not block. It reads at most about limit reports, so that a namespace with more
// reports than are read does not starve the others; more reports whether some may
// be left. After ErrOverrun the reports that remain come with the next call.
func (s Socket) Read(b *Buffer, limit int, visit func(Message) error) (n int, more bool, err error) {
	for n < limit {
		for i := range b.messages {
			b.vectors[i].Base = &b.reports[i*reportSize]
			b.vectors[i].SetLen(reportSize)
			b.messages[i] = message{}
			b.messages[i].header.Iov = &b.vectors[i]
			b.messages[i].header.SetIovlen(1)
		}
		got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s), uintptr(unsafe.Pointer(&b.messages)), reportBatch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return n, false, nil
		case unix.ENOBUFS:
			return n, true, ErrOverrun
		default:
			return n, false, fmt.Errorf("receive reports: %w", errno)
		}
		for i := range b.messages[:got] {
			m := &b.messages[i]
			if m.header.Flags&unix.MSG_TRUNC != 0 {
				return n, true, fmt.Errorf("receive reports: %w: more than %d bytes", ErrMalformed, reportSize)
			}
			if err := visitAll(b.reports[i*reportSize:][:m.length], visit); err != nil {
				return n, true, fmt.Errorf("read report: %w", err)
			}
			n++
		}
		if got < reportBatch {
			return n, false, nil
		}
	}
	return n, true, nil
}

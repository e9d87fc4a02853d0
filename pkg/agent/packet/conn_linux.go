package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// batch is the number of packets that one system call reads.
	batch = 64
	// controlSize is the room for a packet's timestamp.
	controlSize = 64
)

// Buffer holds the memory that packets are read into. Use NewBuffer.
type Buffer struct {
	data     []byte
	control  [batch * controlSize]byte
	names    [batch]unix.RawSockaddrLinklayer
	vectors  [batch]unix.Iovec
	messages [batch]message
	packet   Packet
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// NewBuffer returns a buffer of about 150 KiB.
func NewBuffer() *Buffer { return &Buffer{data: make([]byte, batch*snapLength)} }

// Conn reads the DNS packets of one network namespace. Use Open.
type Conn struct{ fd int }

// Open returns a Conn for the network namespace of the calling thread. It sees
// the packets from now on. receiveBuffer bounds the bytes that the kernel
// queues; a packet takes 1 to 4 KB of them.
func Open(receiveBuffer int) (*Conn, error) {
	// Without a protocol, the socket receives nothing before it is bound, by
	// when it has its filter.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	case err != nil:
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := prepare(fd, receiveBuffer); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Conn{fd: fd}, nil
}

func prepare(fd, receiveBuffer int) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble packet filter: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach packet filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("enable timestamps: %w", err)
	}
	// The kernel doubles the value for its own bookkeeping.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2); err != nil {
			return fmt.Errorf("set receive buffer: %w", err)
		}
	}
	// Only sockets for all protocols see outgoing packets.
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// Close closes the socket, and with it the reference to the namespace.
func (c *Conn) Close() { _ = unix.Close(c.fd) }

// FD returns the descriptor, which becomes readable when packets are queued.
func (c *Conn) FD() int { return c.fd }

// Dropped returns the number of packets that the kernel dropped since the
// previous call because the buffer was full.
func (c *Conn) Dropped() uint32 {
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return stats.Drops
}

// Read calls visit for the packets queued, at most about limit. It does not
// block.
func (c *Conn) Read(b *Buffer, limit int, visit func(*Packet)) (n int, err error) {
	for n < limit {
		for i := range b.messages {
			b.vectors[i].Base = &b.data[i*snapLength]
			b.vectors[i].SetLen(snapLength)
			h := &b.messages[i].header
			*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&b.names[i])), Namelen: uint32(unsafe.Sizeof(b.names[i])), Iov: &b.vectors[i], Control: &b.control[i*controlSize]}
			h.SetIovlen(1)
			h.SetControllen(controlSize)
		}
		got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&b.messages)), batch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR, unix.ENETDOWN: // a device went down; the socket goes on
			continue
		case unix.EAGAIN:
			return n, nil
		default:
			return n, fmt.Errorf("receive packets: %w", errno)
		}
		for i := range b.messages[:got] {
			m := &b.messages[i]
			p := &b.packet
			*p = Packet{
				Time:      timestamp(b.control[i*controlSize:][:min(int(m.header.Controllen), controlSize)]),
				Outgoing:  b.names[i].Pkttype == typeOutgoing,
				Interface: int(b.names[i].Ifindex),
				Data:      b.data[i*snapLength:][:min(int(m.length), snapLength)],
			}
			visit(p)
		}
		if n += int(got); got < batch {
			return n, nil
		}
	}
	return n, nil
}

// timestamp reads the kernel's time of a packet from its control messages, and
// returns 0 if there is none.
func timestamp(control []byte) int64 {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			return 0
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && size >= unix.CmsgLen(int(unsafe.Sizeof(unix.Timespec{}))) {
			at := (*unix.Timespec)(unsafe.Pointer(&control[unix.CmsgLen(0)]))
			return at.Nano()
		}
		control = control[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(control)):]
	}
	return 0
}

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/nat"
)

const (
	groupNew = 1 // NFNLGRP_CONNTRACK_NEW

	dumpBuffer = 64 << 10
	// reportBatch is the number of reports that one system call reads.
	// reportSize is the room for each: the kernel sends 200 to 400 bytes.
	reportBatch = 64
	reportSize  = 1024

	// receiveTimeoutSeconds bounds the wait for a dump that the kernel does not
	// answer.
	receiveTimeoutSeconds = 5
)

// filter passes the reports of connections whose status says that an address is
// translated.
var filter = []bpf.Instruction{
	bpf.LoadConstant{Dst: bpf.RegX, Val: attrStatus},
	bpf.LoadConstant{Dst: bpf.RegA, Val: headerSize + messageSize},
	bpf.LoadExtension{Num: bpf.ExtNetlinkAttr}, // A becomes the attribute's offset, or 0
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 3},
	bpf.TAX{},
	bpf.LoadIndirect{Off: attrSize, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: statusTranslated, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 0xffffffff},
}

// Buffer holds the memory that messages are read into. Use NewBuffer.
type Buffer struct {
	dump       []byte
	reports    []byte
	vectors    [reportBatch]unix.Iovec
	messages   [reportBatch]message
	connection nat.Connection
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

// Conn reads the connection tracking of one network namespace. Use Open.
type Conn struct {
	reports int // netlink socket that receives reports
	dump    int // netlink socket for dumps
	idle    bool
	enabled bool
}

// Open returns a Conn for the network namespace of the calling thread, which
// receives reports from now on. receiveBuffer bounds the bytes of reports that
// the kernel queues; one takes about 1 KB of them.
func Open(receiveBuffer int) (*Conn, error) {
	c := &Conn{reports: -1, dump: -1}
	// Both files show the namespace of the calling thread. The first is missing
	// if nothing is tracked.
	count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrAbsent
	}
	c.idle = strings.TrimSpace(string(count)) == "0"
	events, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_events")
	c.enabled = err != nil || strings.TrimSpace(string(events)) != "0"
	if err := c.open(receiveBuffer); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) open(receiveBuffer int) (err error) {
	if c.dump, err = socket(0); err != nil {
		return err
	}
	timeout := unix.Timeval{Sec: receiveTimeoutSeconds}
	if err := unix.SetsockoptTimeval(c.dump, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("set receive timeout: %w", err)
	}
	if c.reports, err = socket(unix.SOCK_NONBLOCK); err != nil {
		return err
	}
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble filter of reports: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(c.reports, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach filter of reports: %w", err)
	}
	// The kernel doubles the value for its own bookkeeping.
	if unix.SetsockoptInt(c.reports, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2) != nil {
		if err := unix.SetsockoptInt(c.reports, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2); err != nil {
			return fmt.Errorf("set receive buffer: %w", err)
		}
	}
	err = unix.SetsockoptInt(c.reports, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupNew)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	if err != nil {
		return fmt.Errorf("subscribe to new connections: %w", err)
	}
	return nil
}

func socket(flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind netlink socket: %w", err)
	}
	return fd, nil
}

// Close closes the sockets, and with them the reference to the namespace.
func (c *Conn) Close() {
	for _, fd := range []int{c.reports, c.dump} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	c.reports, c.dump = -1, -1
}

// FD returns the descriptor that becomes readable when reports are queued.
func (c *Conn) FD() int { return c.reports }

// Reports reports whether the kernel sends reports. It does not if an operator
// set net.netfilter.nf_conntrack_events to 0.
func (c *Conn) Reports() bool { return c.enabled }

// Dump calls visit for each translated connection that exists. It blocks on the
// kernel, which walks the table of all namespaces; a namespace that tracked
// nothing when the Conn was opened is not walked at the first call.
func (c *Conn) Dump(b *Buffer, visit func(*nat.Connection)) error {
	if c.idle {
		c.idle = false
		return nil
	}
	// The kernel compares all bits of the mask, so each kind takes a walk. A
	// kernel before 5.15 ignores the filter, and parse filters again.
	for i, status := range []uint32{statusSourceTranslated, statusTargetTranslated} {
		if err := c.request(b, uint32(i+1), status, visit); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conn) request(b *Buffer, sequence, status uint32, visit func(*nat.Connection)) error {
	req := make([]byte, headerSize+messageSize, headerSize+messageSize+2*(attrSize+4))
	for _, kind := range []uint16{attrStatus, attrStatusMask} {
		req = binary.NativeEndian.AppendUint16(req, attrSize+4)
		req = binary.NativeEndian.AppendUint16(req, kind)
		req = binary.BigEndian.AppendUint32(req, status)
	}
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], kindGet)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], sequence)
	if err := unix.Sendto(c.dump, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send dump request: %w", err)
	}
	for {
		n, err := unix.Read(c.dump, b.dump)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive dump: %w", err)
		}
		done, err := b.parse(b.dump[:n], sequence, visit)
		if err != nil {
			return fmt.Errorf("read dump: %w", err)
		}
		if done {
			return nil
		}
	}
}

// parse visits the connections in messages with the sequence number, and
// reports whether the last one was among them.
func (b *Buffer) parse(in []byte, sequence uint32, visit func(*nat.Connection)) (done bool, err error) {
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
		case kindDone, kindError:
			return true, dumpResult(payload)
		case kindNew:
			relevant, err := parse(payload, &b.connection)
			if err != nil {
				return false, err
			}
			if relevant {
				visit(&b.connection)
			}
		}
	}
	return false, nil
}

// dumpResult reads the status in the last message of a dump.
func dumpResult(payload []byte) error {
	if len(payload) < 4 {
		return nil
	}
	switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(payload))); errno {
	case 0:
		return nil
	case unix.EPERM:
		return fmt.Errorf("%w: %w", ErrPermission, errno)
	case unix.EINVAL, unix.EOPNOTSUPP:
		return fmt.Errorf("%w: the module nf_conntrack_netlink is missing: %w", ErrUnsupported, errno)
	default:
		return errno
	}
}

// Read calls visit for each new translated connection reported since the
// previous call. It does not block. It reads at most about limit reports; more
// reports whether some may be left. ErrOverrun means that reports were lost;
// the ones that remain come with the next call.
func (c *Conn) Read(b *Buffer, limit int, visit func(*nat.Connection)) (n int, more bool, err error) {
	for n < limit {
		for i := range b.messages {
			b.vectors[i].Base = &b.reports[i*reportSize]
			b.vectors[i].SetLen(reportSize)
			b.messages[i] = message{}
			b.messages[i].header.Iov = &b.vectors[i]
			b.messages[i].header.SetIovlen(1)
		}
		got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.reports), uintptr(unsafe.Pointer(&b.messages)), reportBatch, unix.MSG_DONTWAIT, 0, 0)
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
			if err := b.parseReport(b.reports[i*reportSize:][:m.length], visit); err != nil {
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

func (b *Buffer) parseReport(in []byte, visit func(*nat.Connection)) error {
	for len(in) > 0 {
		h, payload, rest, err := next(in)
		if err != nil {
			return err
		}
		in = rest
		if h.kind != kindNew {
			continue
		}
		relevant, err := parse(payload, &b.connection)
		if err != nil {
			return err
		}
		if relevant {
			visit(&b.connection)
		}
	}
	return nil
}

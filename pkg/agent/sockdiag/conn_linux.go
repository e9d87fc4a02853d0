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
	// kindDumpAll is TCPDIAG_GETSOCK of linux/inet_diag.h, the older request: it has the kernel walk
	// its table once for both families, where the newer one needs a walk for each. On a machine
	// with many namespaces walking is what costs, since they share one large table.
	kindDumpAll = 18
	// kindDump is SOCK_DIAG_BY_FAMILY.
	kindDump = unix.SOCK_DIAG_BY_FAMILY

	flagDump = unix.NLM_F_REQUEST | unix.NLM_F_DUMP

	// dumpBuffer is twice what the kernel puts into one answer when it is offered that much.
	dumpBuffer = 64 << 10
	// wordsBatch is how many notifications one system call takes, wordSize the room for each: the kernel
	// sends about 400 bytes, and tcp_info grows by some tens a year.
	wordsBatch = 64
	wordSize   = 1024

	// receiveTimeoutSeconds ends a dump that the kernel does not answer.
	receiveTimeoutSeconds = 5
)

// States is a set of flow.State.
type States uint32

// Set returns the set of these states.
func Set(states ...flow.State) States {
	var s States
	for _, state := range states {
		s |= 1 << state
	}
	return s
}

// Listening is of listening sockets alone; Connections is of all that a flow.Table wants to see, which leaves
// out what has ended and what is not a connection yet.
var (
	Listening   = Set(flow.StateListen)
	Connections = Listening | Set(flow.StateEstablished, flow.StateSynSent, flow.StateFinWait1, flow.StateFinWait2,
		flow.StateCloseWait, flow.StateLastAck, flow.StateClosing)
)

// Buffer is memory for messages. Use NewBuffer.
type Buffer struct {
	dump     []byte
	words    []byte
	vectors  [wordsBatch]unix.Iovec
	messages [wordsBatch]message
	socket   flow.Socket
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// NewBuffer returns a buffer of about 128 KiB.
func NewBuffer() *Buffer {
	return &Buffer{dump: make([]byte, dumpBuffer), words: make([]byte, wordsBatch*wordSize)}
}

// Conn asks one network namespace. Use Open.
type Conn struct {
	dump, words int // file descriptors, -1 when there is none
	sequence    uint32
	perFamily   bool // the kernel does not know kindDumpAll
}

// Open returns a Conn for the network namespace of the calling thread. The error is ErrUnsupported when
// this kernel has no sock_diag.
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
	return &Conn{dump: fd, words: -1}, nil
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

// Subscribe has the kernel keep the last words of sockets for Words from now on, in the namespace that the calling
// thread is in, which must be that of Open. At most receiveBuffer bytes of them are kept, and as much less
// as the system's limit (net.core.rmem_max) is when CAP_NET_ADMIN is missing; one takes between 1 and
// 2.5 KB. It returns how many bytes the kernel granted.
func (c *Conn) Subscribe(receiveBuffer int) (granted int, err error) {
	if c.words >= 0 {
		return 0, errors.New("subscribe: subscribed already")
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
	// The kernel doubles what it is given, for its own bookkeeping, and reports the double.
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
	c.words = fd
	return granted, nil
}

// Close frees the kernel's sockets, and with them the namespace.
func (c *Conn) Close() {
	closeFile(c.dump)
	if c.words >= 0 {
		closeFile(c.words)
	}
	c.dump, c.words = -1, -1
}

// closeFile closes a socket that was only read; there is nothing that closing could lose.
func closeFile(fd int) { _ = unix.Close(fd) }

// Dump calls visit for each TCP socket that is in one of the states. It waits for the kernel, for about 2 us
// a socket. The visitor must not keep what it is given. After an error, what was visited is sound but
// not all.
func (c *Conn) Dump(b *Buffer, states States, visit func(*flow.Socket)) error {
	if !c.perFamily {
		err := c.request(b, kindDumpAll, unix.AF_INET, states, visit)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, ErrUnsupported) {
			return err
		}
	}
	// A kernel without the older request refuses it before it shows any socket.
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
	var req [headerSize + 56 + 4]byte // both kinds are of nearly the same layout and size
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
		done, err := b.answers(b.dump[:n], c.sequence, visit)
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

// answers visits the sockets of one part of a dump.
func (b *Buffer) answers(in []byte, sequence uint32, visit func(*flow.Socket)) (done bool, err error) {
	for len(in) > 0 {
		h, payload, rest, err := next(in)
		if err != nil {
			return false, err
		}
		in = rest
		if h.sequence != sequence {
			continue // of a dump that was given up
		}
		switch h.kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, result(payload)
		case kindDump, kindDumpAll:
			if err := parse(payload, &b.socket); err != nil {
				return false, err
			}
			visit(&b.socket)
		}
	}
	return false, nil
}

// result is what the last message of a dump says of it.
func result(payload []byte) error {
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

// Words calls visit for the last words of each socket that was destroyed since the call before. It does not wait.
// It takes at most limit of them, so that a namespace in which sockets die faster than they
// are read does not hold up the others; more reports that some may be left. ErrOverrun says that words were
// lost; those that were not come with the next call.
func (c *Conn) Words(b *Buffer, limit int, visit func(*flow.Socket)) (n int, more bool, err error) {
	for n < limit {
		for i := range b.messages {
			b.vectors[i].Base = &b.words[i*wordSize]
			b.vectors[i].SetLen(wordSize)
			b.messages[i] = message{}
			b.messages[i].header.Iov = &b.vectors[i]
			b.messages[i].header.SetIovlen(1)
		}
		got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.words), uintptr(unsafe.Pointer(&b.messages)), wordsBatch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return n, false, nil
		case unix.ENOBUFS:
			return n, true, ErrOverrun
		default:
			return n, false, fmt.Errorf("receive last words: %w", errno)
		}
		for i := range b.messages[:got] {
			m := &b.messages[i]
			if m.header.Flags&unix.MSG_TRUNC != 0 {
				return n, true, fmt.Errorf("receive last words: %w: more than %d bytes", ErrMalformed, wordSize)
			}
			word := b.words[i*wordSize:][:m.length]
			if err := b.word(word, visit); err != nil {
				return n, true, fmt.Errorf("read last words: %w", err)
			}
			n++
		}
		if got < wordsBatch {
			return n, false, nil
		}
	}
	return n, true, nil
}

func (b *Buffer) word(in []byte, visit func(*flow.Socket)) error {
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

package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/nat"
	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

const groupNew = 1 // NFNLGRP_CONNTRACK_NEW

// filter passes the reports of connections whose status says that an address is
// translated.
var filter = []bpf.Instruction{
	bpf.LoadConstant{Dst: bpf.RegX, Val: attrStatus},
	bpf.LoadConstant{Dst: bpf.RegA, Val: netlink.HeaderSize + messageSize},
	bpf.LoadExtension{Num: bpf.ExtNetlinkAttr}, // A becomes the attribute's offset, or 0
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 3},
	bpf.TAX{},
	bpf.LoadIndirect{Off: netlink.AttributeSize, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: statusTranslated, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 0xffffffff},
}

// Buffer holds the memory that messages are read into. Use NewBuffer.
type Buffer struct {
	*netlink.Buffer
	connection nat.Connection
}

// NewBuffer returns a buffer of about 128 KiB.
func NewBuffer() *Buffer { return &Buffer{Buffer: netlink.NewBuffer()} }

// Conn reads the connection tracking of one network namespace. Use Open.
type Conn struct {
	reports, dump netlink.Socket
	sequence      uint32
	idle          bool
	enabled       bool
}

// Open returns a Conn for the network namespace of the calling thread, which
// receives reports from now on. receiveBuffer bounds the bytes of reports that
// the kernel queues; one takes about 1 KB of them.
func Open(receiveBuffer int) (*Conn, error) {
	c := &Conn{reports: netlink.Closed, dump: netlink.Closed}
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
	if c.dump, err = netlink.OpenDump(unix.NETLINK_NETFILTER); err != nil {
		return unsupported(err)
	}
	if c.reports, err = netlink.OpenReports(unix.NETLINK_NETFILTER, receiveBuffer); err != nil {
		return unsupported(err)
	}
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble filter of reports: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(int(c.reports), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach filter of reports: %w", err)
	}
	err = c.reports.Join(groupNew)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	if err != nil {
		return fmt.Errorf("subscribe to new connections: %w", err)
	}
	return nil
}

// unsupported says what the kernel lacks when it lacks netlink's protocol.
func unsupported(err error) error {
	if errors.Is(err, netlink.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Close closes the sockets, and with them the reference to the namespace.
func (c *Conn) Close() {
	c.reports.Close()
	c.dump.Close()
	c.reports, c.dump = netlink.Closed, netlink.Closed
}

// FD returns the descriptor that becomes readable when reports are queued.
func (c *Conn) FD() int { return int(c.reports) }

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
	for _, status := range []uint32{statusSourceTranslated, statusTargetTranslated} {
		c.sequence++
		err := c.dump.Dump(b.Buffer, dumpRequest(status), kindGet, c.sequence, b.visitor(visit))
		switch {
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: %w", ErrPermission, err)
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("%w: the module nf_conntrack_netlink is missing: %w", ErrUnsupported, err)
		case err != nil:
			return err
		}
	}
	return nil
}

// dumpRequest asks for the connections with all bits of a status. The socket
// fills in the header.
func dumpRequest(status uint32) []byte {
	const attribute = netlink.AttributeSize + 4
	req := make([]byte, netlink.HeaderSize+messageSize, netlink.HeaderSize+messageSize+2*attribute)
	for _, kind := range []uint16{attrStatus, attrStatusMask} {
		req = binary.NativeEndian.AppendUint16(req, attribute)
		req = binary.NativeEndian.AppendUint16(req, kind)
		req = binary.BigEndian.AppendUint32(req, status)
	}
	return req
}

// visitor parses messages and passes on translated connections.
func (b *Buffer) visitor(visit func(*nat.Connection)) func(netlink.Message) error {
	return func(m netlink.Message) error {
		if m.Kind != kindNew {
			return nil
		}
		relevant, err := parse(m.Payload, &b.connection)
		if relevant {
			visit(&b.connection)
		}
		return err
	}
}

// Read calls visit for each new translated connection reported since the
// previous call. It does not block. It reads at most about limit reports; more
// reports whether some may be left. ErrOverrun means that reports were lost;
// the ones that remain come with the next call.
func (c *Conn) Read(b *Buffer, limit int, visit func(*nat.Connection)) (n int, more bool, err error) {
	return c.reports.Read(b.Buffer, limit, b.visitor(visit))
}

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

const (
	// domain is where the programs' resolvers look for names, as in Kubernetes.
	domain = "shop.svc.cluster.local"
	// virtual is an address that the node translates, as kube-proxy does, to
	// stock's.
	virtual = "10.96.0.10"
)

// gateway is the node's own address.
var gateway = netip.MustParseAddr("10.78.0.1")

// host is a network namespace with an address of its own, as a pod has. It
// lives as long as its process, as a pod lives as long as its pause container.
type host struct {
	name   string
	number int
	ip     netip.Addr
	ip6    netip.Addr
	pause  *exec.Cmd
	stdin  io.WriteCloser
}

func (h *host) pid() int { return h.pause.Process.Pid }

// device is the node's end of the host's cable.
func (h *host) device() string { return fmt.Sprintf("pod%d", h.number) }

// newHost creates a host and its cable to the node.
func newHost(name string, number int) (*host, error) {
	h := &host{
		name: name, number: number, pause: exec.Command("cat"),
		ip:  netip.AddrFrom4([4]byte{10, 78, 0, byte(number)}),
		ip6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x78, 15: byte(number)}),
	}
	namespaces.Isolate(h.pause)
	var err error
	if h.stdin, err = h.pause.StdinPipe(); err != nil {
		return nil, err
	}
	if err := h.pause.Start(); err != nil {
		return nil, err
	}
	// One segment to a packet, so that a lost packet is a lost segment.
	outside := fmt.Sprintf(`link add %[1]s type veth peer name eth0 netns %[2]d
link set %[1]s addrgenmode none gso_max_segs 1
addr add %[3]s/32 dev %[1]s
addr add fe80::1/64 dev %[1]s nodad
link set %[1]s up
route add %[4]s/32 dev %[1]s
route add %[5]s/128 dev %[1]s
`, h.device(), h.pid(), gateway, h.ip, h.ip6)
	if err := namespaces.Feed(outside, "ip", "-batch", "-"); err != nil {
		return nil, err
	}
	return h, h.run(fmt.Sprintf(`link set lo up
link set eth0 gso_max_segs 1 up
addr add %s/32 dev eth0
addr add %s/128 dev eth0 nodad
route add %[3]s dev eth0 scope link
route add default via %[3]s dev eth0
route add default via fe80::1 dev eth0
`, h.ip, h.ip6, gateway), "ip", "-batch", "-")
}

// run runs a program in the host's network namespace.
func (h *host) run(input, program string, args ...string) error {
	return namespaces.Enter(h.pid(), func() error { return namespaces.Feed(input, program, args...) })
}

// dial connects from the host to an address, which must be no name: a
// namespace is that of a thread, and dialing an address takes no other.
func (h *host) dial(address string) (conn net.Conn, err error) {
	return conn, namespaces.Enter(h.pid(), func() error {
		conn, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", address)
		return err
	})
}

// listen listens on a port of the host.
func (h *host) listen(port int) (l net.Listener, err error) {
	return l, namespaces.Enter(h.pid(), func() error {
		l, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", h.ip, port))
		return err
	})
}

// faults are what the node does to packets that it forwards.
type faults struct {
	mu    sync.Mutex
	rules []string
	hop   *hop
}

// both returns a rule for packets between two addresses in either direction.
func both(a, b netip.Addr, rule string) []string {
	return []string{oneWay(a, b, rule), oneWay(b, a, rule)}
}

func oneWay(from, to netip.Addr, rule string) string {
	family := "ip"
	if from.Is6() {
		family = "ip6"
	}
	return fmt.Sprintf("%s saddr %s %s daddr %s %s", family, from, family, to, rule)
}

// set replaces the rules.
func (f *faults) set(rules ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = rules
	return f.apply()
}

// apply writes all rules. Those of the address that stock has as a service are
// always there, and with them the node's connection tracking.
func (f *faults) apply() error {
	var forward, source strings.Builder
	for _, rule := range f.rules {
		if r, translates := strings.CutPrefix(rule, masquerade); translates {
			fmt.Fprintln(&source, r)
		} else {
			fmt.Fprintln(&forward, rule)
		}
	}
	return namespaces.Feed(fmt.Sprintf(`add table inet lab
delete table inet lab
table inet lab {
	chain forward {
		type filter hook forward priority 0;
		%s
	}
	chain services {
		type nat hook prerouting priority -100;
		ip daddr %s tcp dport 80 dnat ip to %s:3000
	}
	chain sources {
		type nat hook postrouting priority 100;
		%s
	}
}
`, &forward, virtual, netip.AddrFrom4([4]byte{10, 78, 0, stockNumber}), &source), "nft", "-f", "-")
}

// masquerade marks a rule of source translation.
const masquerade = "masquerade: "

// lose drops packets at random, in thousandths.
func lose(thousandths int) string {
	if thousandths == 1000 {
		return "drop"
	}
	return fmt.Sprintf("numgen random mod 1000 < %d drop", thousandths)
}

// swallow drops the packets that open connections.
const swallow = "tcp flags & (syn | ack) == syn drop"

// delay delays the packets of these ways, from a host to another, and by up to
// jitter more at random.
func (f *faults) delay(d, jitter time.Duration, ways ...[2]*host) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hop.hold(d, jitter, ways...)
}

// heal ends all faults.
func (f *faults) heal() error {
	err := f.set()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(err, f.hop.heal())
}

package capture

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// node is a pod, another pod, and the host between them, which translates
// addresses as kube-proxy does.
type node struct {
	client, server, router *host
	service, resolver      netip.Addr // translated to the server
	address6               string     // of the server
}

// newNode creates three network namespaces, and removes them when the test
// ends.
func newNode(t *testing.T, subnet int) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to create network namespaces")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian packages iproute2 and nftables)", tool)
		}
	}
	hosts := [3]*host{}
	for i := range hosts {
		hosts[i] = &host{t: t, name: fmt.Sprintf("mfn%d-%d-%d", os.Getpid(), subnet, i)}
		if out, err := exec.Command("ip", "netns", "add", hosts[i].name).CombinedOutput(); err != nil {
			t.Skipf("cannot create network namespaces here: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", hosts[i].name).Run() })
		command(t, "ip", "-n", hosts[i].name, "link", "set", "lo", "up")
	}
	n := &node{client: hosts[0], server: hosts[1], router: hosts[2]}
	for i, h := range hosts[:2] {
		network := fmt.Sprintf("10.%d.%d", 100+subnet, i+1)
		network6 := fmt.Sprintf("fd00:%d:%d:", 100+subnet, i+1)
		device := fmt.Sprintf("pod%d", i)
		command(t, "ip", "link", "add", "eth0", "netns", h.name, "type", "veth", "peer", "name", device, "netns", n.router.name)
		command(t, "ip", "-n", h.name, "addr", "add", network+".2/24", "dev", "eth0")
		command(t, "ip", "-n", h.name, "addr", "add", network6+":2/64", "dev", "eth0", "nodad")
		command(t, "ip", "-n", n.router.name, "addr", "add", network+".1/24", "dev", device)
		command(t, "ip", "-n", n.router.name, "addr", "add", network6+":1/64", "dev", device, "nodad")
		command(t, "ip", "-n", h.name, "link", "set", "eth0", "up")
		command(t, "ip", "-n", n.router.name, "link", "set", device, "up")
		command(t, "ip", "-n", h.name, "route", "add", "default", "via", network+".1")
		h.address = netip.MustParseAddr(network + ".2")
		n.router.address = netip.MustParseAddr(network + ".1")
		n.address6 = network6 + ":2"
	}
	command(t, "ip", "netns", "exec", n.router.name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	n.service, n.resolver = netip.AddrFrom4([4]byte{10, 96, byte(subnet), 10}), netip.AddrFrom4([4]byte{10, 96, byte(subnet), 53})
	cmd := exec.Command("ip", "netns", "exec", n.router.name, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
table ip nat {
  chain services {
    ip daddr %[1]s tcp dport 80 dnat to %[3]s:8080
    ip daddr %[2]s udp dport 53 dnat to %[3]s:53
  }
  chain prerouting {
    type nat hook prerouting priority -100
    jump services
  }
  chain output {
    type nat hook output priority -100
    jump services
  }
  chain postrouting {
    type nat hook postrouting priority 100
    ct status dnat masquerade
  }
}
`, n.service, n.resolver, n.server.address))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("cannot translate addresses here: %v: %s", err, out)
	}
	command(t, "ip", "-n", n.router.name, "route", "add", "default", "via", n.server.address.String())
	found, _, err := netns.NewScanner(netns.Options{}).Scan()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		for _, ns := range found {
			if ns.Name == h.name {
				h.ns = ns
			}
		}
	}
	return n
}

// resolver is a DNS server. Names that begin with "slow" take 300 ms, "lost"
// has no answer, "broken" fails, "no" does not exist; all others have the
// address given.
func (h *host) resolver(address netip.Addr) {
	h.t.Helper()
	var conn *net.UDPConn
	err := netns.Do(h.ns, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 53})
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	h.t.Cleanup(func() { conn.Close(); <-ended })
	go func() {
		defer close(ended)
		in := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(in)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(in[:n]); err != nil || len(m.Questions) != 1 {
				h.t.Errorf("question %x: %v", in[:n], err)
				continue
			}
			m.Response = true
			q := m.Questions[0]
			switch kind, _, _ := strings.Cut(q.Name.String(), "."); kind {
			case "lost":
				continue
			case "broken":
				m.RCode = dnsmessage.RCodeServerFailure
			case "no":
				m.RCode = dnsmessage.RCodeNameError
			case "slow":
				timer := time.NewTimer(300 * time.Millisecond)
				<-timer.C
				fallthrough
			default:
				alias := dnsmessage.MustNewName("real." + q.Name.String())
				m.Answers = []dnsmessage.Resource{
					{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &dnsmessage.CNAMEResource{CNAME: alias}},
					{Header: dnsmessage.ResourceHeader{Name: alias, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: address.As4()}},
				}
			}
			out, err := m.Pack()
			if err != nil {
				h.t.Error(err)
				continue
			}
			_, _ = conn.WriteToUDPAddrPort(out, from)
		}
	}()
}

// ask resolves a name from inside the host. It waits for the answer, but not
// for long.
func (h *host) ask(resolver netip.AddrPort, name string) {
	h.t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 77, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	question, err := m.Pack()
	if err != nil {
		h.t.Fatal(err)
	}
	err = netns.Do(h.ns, func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(resolver))
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(question); err != nil {
			return err
		}
		if strings.HasPrefix(name, "lost") {
			return nil
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = conn.Read(make([]byte, 1500))
		return err
	})
	if err != nil {
		h.t.Fatalf("ask %s for %s: %v", resolver, name, err)
	}
}

func around() agentconfig.Flow {
	cfg := fast()
	cfg.DNSEnabled, cfg.ConntrackEnabled = true, true
	return cfg
}

// find waits for a matching row and returns it.
func (s *sink) find(t *testing.T, what string, match func(*flow.Row) bool) (row flow.Row) {
	t.Helper()
	wait.Until(t, what, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range s.rows {
			if match(&s.rows[i]) {
				row = s.rows[i]
				return true
			}
		}
		return false
	})
	return row
}

// TestDNS: each question of a namespace is in one row, with its time and
// outcome; the rows of others' questions that a host forwards, and of those
// that a resolver answers, do not exist.
func TestDNS(t *testing.T) {
	n := newNode(t, 1)
	reg := prometheus.NewRegistry()
	_, s := start(t, around(), Options{Registerer: reg})
	n.server.resolver(n.server.address)
	s.watched(t, n.client, n.server)
	s.watched(t, n.router, n.server)
	to := netip.AddrPortFrom(n.resolver, 53)
	for _, name := range []string{"fine.example.", "slow.example.", "broken.example.", "no.example.", "lost.example."} {
		n.client.ask(to, name)
	}
	about := func(h *host, name string) func(*flow.Row) bool {
		return func(r *flow.Row) bool {
			return r.Namespace == h.ns.Inode && r.Protocol == flow.ProtocolDNS && r.PeerName == name
		}
	}
	tests := map[string]struct {
		want flow.Queries
		took time.Duration
	}{
		"fine.example":   {flow.Queries{Asked: 1}, 0},
		"slow.example":   {flow.Queries{Asked: 1}, 300 * time.Millisecond},
		"broken.example": {flow.Queries{Asked: 1, Failed: 1, Code: "SERVFAIL"}, 0},
		"no.example":     {flow.Queries{Asked: 1, Failed: 1, Code: "NXDOMAIN"}, 0},
		"lost.example":   {flow.Queries{Asked: 1, Unanswered: 1}, 0},
	}
	for name, tc := range tests {
		r := s.find(t, "row of "+name, about(n.client, name))
		got := r.Queries
		if took := time.Duration(got.Time) * time.Microsecond; took < tc.took || uint64(got.MaxTime) != got.Time || (took == 0) != (got.Unanswered == 1) {
			t.Errorf("%s took %s", name, took)
		}
		got.Time, got.MaxTime = 0, 0
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
		if r.Local.Addr() != n.client.address || r.Local.Port() == 0 || r.Peer != to || r.Role != flow.RoleClient || r.Cookie == 0 || r.End < r.Start {
			t.Errorf("%s: row %+v", name, r)
		}
	}
	// The host forwarded these with its own address, and asks on its own, too.
	n.router.ask(to, "host.example.")
	r := s.find(t, "row of the host's question", about(n.router, "host.example"))
	if r.Queries.Asked != 1 {
		t.Errorf("row of the host %+v", r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.rows {
		r := &s.rows[i] // other namespaces of the machine have rows of their own
		if r.Protocol == flow.ProtocolDNS && (r.Namespace == n.server.ns.Inode || r.Namespace == n.router.ns.Inode) && r.PeerName != "host.example" {
			t.Errorf("a row of a forwarded question: %+v", r)
		}
	}
	if v := prom.Value(t, reg, "metaflow_capture_dns_forwarded_packets_total"); v == 0 {
		t.Error("no forwarded packet was seen: the test shows nothing")
	}
}

// TestNamesAndTranslations: a connection to a service has its name and the real
// peer at the client's end; at the server's end it has the service's address
// and, though the node masquerades, the client's.
func TestNamesAndTranslations(t *testing.T) {
	n := newNode(t, 2)
	_, s := start(t, around(), Options{})
	n.server.resolver(n.service)
	s.watched(t, n.client, n.server)
	s.watched(t, n.server, n.client)
	s.watched(t, n.router, n.server)
	real := n.server.serve("tcp", netip.AddrPortFrom(n.server.address, 8080).String(), echo)
	service := netip.AddrPortFrom(n.service, 80)
	n.client.ask(netip.AddrPortFrom(n.resolver, 53), "Cart.shop.example.")

	check := func(how string, local netip.AddrPort) {
		t.Helper()
		c := s.find(t, "client's row of a connection that is "+how, func(r *flow.Row) bool { return r.Namespace == n.client.ns.Inode && r.Local == local })
		if c.PeerName != "cart.shop.example" || c.Peer != service || c.TranslatedPeer != real || c.Translated.Addr().Is4() == false || c.Translated.Addr() == local.Addr() {
			t.Errorf("%s: client's row %+v", how, c)
		}
		v := s.find(t, "server's row", func(r *flow.Row) bool { return r.Namespace == n.server.ns.Inode && r.Peer == c.Translated })
		if v.Local != real || v.Translated != service || v.TranslatedPeer != local || v.PeerName != "" {
			t.Errorf("%s: server's row %+v", how, v)
		}
	}
	short := n.client.mustDial(service)
	local := netip.MustParseAddrPort(short.LocalAddr().String())
	short.Close()
	check("short", local)

	long := n.client.mustDial(service)
	defer long.Close()
	if _, err := long.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	check("living", netip.MustParseAddrPort(long.LocalAddr().String()))

	direct := n.client.mustDial(real)
	defer direct.Close()
	local = netip.MustParseAddrPort(direct.LocalAddr().String())
	if r := s.find(t, "row of a direct connection", func(r *flow.Row) bool { return r.Namespace == n.client.ns.Inode && r.Local == local }); r.Translated.IsValid() || r.TranslatedPeer.IsValid() || r.PeerName != "" {
		t.Errorf("direct: %+v", r)
	}
}

// TestTranslationsOfOldConnections: connections that are older than the agent
// have their translation, too.
func TestTranslationsOfOldConnections(t *testing.T) {
	n := newNode(t, 3)
	real := n.server.serve("tcp", netip.AddrPortFrom(n.server.address, 8080).String(), echo)
	conn := n.client.mustDial(netip.AddrPortFrom(n.service, 80))
	defer conn.Close()
	local := netip.MustParseAddrPort(conn.LocalAddr().String())
	_, s := start(t, around(), Options{})
	s.watched(t, n.client, n.server)
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	r := s.find(t, "client's row", func(r *flow.Row) bool { return r.Namespace == n.client.ns.Inode && r.Local == local })
	if r.TranslatedPeer != real {
		t.Errorf("client's row %+v", r)
	}
}

// TestAddresses: every address of a namespace has a row, also those that get
// there after the namespace, and none of them twice.
func TestAddresses(t *testing.T) {
	n := newNode(t, 4)
	_, s := start(t, fast(), Options{})
	address := func(a string) func(*flow.Row) bool {
		return func(r *flow.Row) bool {
			return r.Namespace == n.server.ns.Inode && r.Local == netip.AddrPortFrom(netip.MustParseAddr(a), 0)
		}
	}
	late := "10.104.9.9"
	for _, a := range []string{n.server.address.String(), n.address6} {
		r := s.find(t, "row of "+a, address(a))
		if r.Role != flow.RoleUnknown || r.Protocol != flow.ProtocolTCP || r.Peer != netip.MustParseAddrPort("[::]:0") || r.Counters != (flow.Counters{}) || r.Cookie == 0 {
			t.Errorf("row %+v", r)
		}
	}
	command(t, "ip", "-n", n.server.name, "addr", "add", late+"/32", "dev", "eth0")
	s.find(t, "row of a later address", address(late))
	for _, a := range []string{n.server.address.String(), n.address6, late} {
		if _, count := s.sum(address(a)); count != 1 {
			t.Errorf("%d rows of %s", count, a)
		}
	}
}

// TestPeersReconfigured: while DNS or connection tracking is disabled, nothing
// of it is open; enabled again, it works again.
func TestPeersReconfigured(t *testing.T) {
	n := newNode(t, 5)
	reg := prometheus.NewRegistry()
	off, on := fast(), around()
	c, s := start(t, off, Options{Registerer: reg})
	n.server.resolver(n.server.address)
	s.watched(t, n.client, n.server)
	open := func() float64 {
		return prom.Value(t, reg, "metaflow_capture_dns_network_namespaces") + prom.Value(t, reg, "metaflow_capture_conntrack_network_namespaces")
	}
	if open() != 0 {
		t.Errorf("%v sockets are open though disabled", open())
	}
	to := netip.AddrPortFrom(n.server.address, 53)
	seen := func(name string) {
		t.Helper()
		n.client.ask(to, name+".")
		s.find(t, "row of "+name, func(r *flow.Row) bool {
			return r.Namespace == n.client.ns.Inode && r.PeerName == name && r.Protocol == flow.ProtocolDNS
		})
	}
	c.Configure(on)
	wait.Until(t, "sockets are open", func() bool { return open() >= 6 })
	seen("broken.one.example")
	c.Configure(off)
	wait.Until(t, "sockets are closed", func() bool { return open() == 0 })
	c.Configure(on)
	wait.Until(t, "sockets are open again", func() bool { return open() >= 6 })
	seen("broken.two.example")
}

// TestMissingPrivileges: what the process may not read is named once each, and
// the rest of capture works.
func TestMissingPrivileges(t *testing.T) {
	const variable = "CAPTURE_WITHOUT_PRIVILEGES"
	if os.Getenv(variable) == "" {
		if os.Geteuid() != 0 {
			t.Skip("needs root to drop capabilities")
		}
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			t.Skip("needs setpriv (Debian package util-linux)")
		}
		cmd := exec.Command(setpriv, "--bounding-set", "-net_raw,-net_admin", os.Args[0], "-test.run", "^TestMissingPrivileges$")
		cmd.Env = append(os.Environ(), variable+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	c, _ := start(t, around(), Options{})
	for _, capability := range []string{"CAP_NET_RAW", "reading connection tracking needs the capability CAP_NET_ADMIN"} {
		wait.Until(t, capability+" is missing", func() bool {
			n := 0
			for _, s := range c.Exceptions() {
				n += strings.Count(s, capability)
			}
			return n == 1
		})
	}
}

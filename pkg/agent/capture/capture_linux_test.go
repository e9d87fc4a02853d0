package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink collects rows.
type sink struct {
	mu   sync.Mutex
	rows []flow.Row
	more chan struct{}
}

func newSink() *sink { return &sink{more: make(chan struct{}, 1)} }

func (s *sink) Consume(_ context.Context, rows []flow.Row) (int, error) {
	s.mu.Lock()
	s.rows = append(s.rows, rows...)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return len(rows), nil
}

// sum adds up the matching rows.
func (s *sink) sum(match func(*flow.Row) bool) (sum flow.Row, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.rows {
		r := &s.rows[i]
		if !match(r) {
			continue
		}
		n++
		sum.Connections += r.Connections
		sum.ConnectFailures += r.ConnectFailures
		sum.Resets += r.Resets
		sum.Timeouts += r.Timeouts
		sum.BytesSent += r.BytesSent
		sum.BytesReceived += r.BytesReceived
		sum.Retransmits += r.Retransmits
		sum.RetransmittedBytes += r.RetransmittedBytes
		sum.ReceiveWindowLimited += r.ReceiveWindowLimited
		sum.Busy += r.Busy
		sum.Closed = sum.Closed || r.Closed
		sum.RTT = max(sum.RTT, r.RTT)
		sum.Role, sum.Reason = r.Role, r.Reason
	}
	return sum, n
}

// await waits until the sum of the matching rows satisfies done.
func (s *sink) await(t *testing.T, what string, match func(*flow.Row) bool, done func(flow.Row) bool) flow.Row {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		sum, _ := s.sum(match)
		if done(sum) {
			return sum
		}
		select {
		case <-s.more:
		case <-deadline:
			t.Fatalf("%s: rows add up to %+v", what, sum)
		}
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// host is a network namespace with an address.
type host struct {
	t       *testing.T
	name    string
	address netip.Addr
	ns      netns.Namespace
}

// pair creates two hosts joined by a veth pair, and removes them when the test
// ends.
func pair(t *testing.T, subnet int) (a, b *host) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to create network namespaces")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian packages iproute2 and nftables)", tool)
		}
	}
	hosts := [2]*host{}
	for i := range hosts {
		h := &host{t: t, name: fmt.Sprintf("mf%d-%d-%d", os.Getpid(), subnet, i), address: netip.AddrFrom4([4]byte{10, 99, byte(subnet), byte(i + 1)})}
		if out, err := exec.Command("ip", "netns", "add", h.name).CombinedOutput(); err != nil {
			t.Skipf("cannot create network namespaces here: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", h.name).Run() })
		hosts[i] = h
	}
	command(t, "ip", "link", "add", "eth0", "netns", hosts[0].name, "type", "veth", "peer", "name", "eth0", "netns", hosts[1].name)
	found, _, err := netns.NewScanner(netns.Options{}).Scan()
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts {
		command(t, "ip", "-n", h.name, "addr", "add", h.address.String()+"/24", "dev", "eth0")
		command(t, "ip", "-n", h.name, "addr", "add", fmt.Sprintf("fd00:99:%d::%d/64", subnet, i+1), "dev", "eth0", "nodad")
		// Send packets of one segment each, so that filters drop few bytes as
		// surely as many.
		command(t, "ip", "-n", h.name, "link", "set", "eth0", "up", "gso_max_segs", "1")
		command(t, "ip", "-n", h.name, "link", "set", "lo", "up")
		for _, ns := range found {
			if ns.Name == h.name {
				h.ns = ns
			}
		}
		if h.ns.Inode == 0 {
			t.Fatalf("namespace %s not found", h.name)
		}
	}
	return hosts[0], hosts[1]
}

// filter replaces the host's nft rules for incoming packets.
func (h *host) filter(rules ...string) {
	h.t.Helper()
	script := "flush ruleset\n"
	if len(rules) > 0 {
		script += "table inet t {\nchain i {\ntype filter hook input priority 0;\n" + strings.Join(rules, "\n") + "\n}\n}\n"
	}
	cmd := exec.Command("ip", "netns", "exec", h.name, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("nft %s: %v: %s", script, err, out)
	}
}

// serve accepts connections at the host and runs handle for each.
func (h *host) serve(network, address string, handle func(net.Conn)) netip.AddrPort {
	h.t.Helper()
	var l net.Listener
	err := netns.Do(h.ns, func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	open := make(chan net.Conn, 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open <- conn
			wg.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	h.t.Cleanup(func() {
		l.Close()
		for range len(open) {
			(<-open).Close()
		}
		wg.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// dial connects from inside the host.
func (h *host) dial(to netip.AddrPort, timeout time.Duration) (conn *net.TCPConn, err error) {
	err = netns.Do(h.ns, func() error {
		c, err := (&net.Dialer{Timeout: timeout}).Dial("tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

func (h *host) mustDial(to netip.AddrPort) *net.TCPConn {
	h.t.Helper()
	conn, err := h.dial(to, 10*time.Second)
	if err != nil {
		h.t.Fatal(err)
	}
	return conn
}

func discard(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func echo(conn net.Conn) { _, _ = io.Copy(conn, conn) }

func fast() agentconfig.Flow {
	return agentconfig.Flow{Enabled: true, DumpInterval: time.Second, ReportInterval: time.Second}
}

// start runs a Capture until the test ends.
func start(t *testing.T, cfg agentconfig.Flow, opts Options) (*Capture, *sink) {
	t.Helper()
	s := newSink()
	c := New(cfg, s, opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return c, s
}

// watched waits until the capture sees the host's connections, using a port
// that no test uses.
func (s *sink) watched(t *testing.T, from, to *host) {
	t.Helper()
	closed := netip.AddrPortFrom(to.address, 9)
	_, before := s.sum(func(r *flow.Row) bool { return r.Namespace == from.ns.Inode && r.Peer == closed })
	wait.Until(t, "namespace is watched", func() bool {
		if _, err := from.dial(closed, wait.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dial of a closed port = %v", err)
		}
		_, n := s.sum(func(r *flow.Row) bool { return r.Namespace == from.ns.Inode && r.Peer == closed })
		return n > before
	})
}

// at matches the rows of one end of the connections to a server.
func at(h *host, role flow.Role, server netip.AddrPort) func(*flow.Row) bool {
	return func(r *flow.Row) bool {
		end := r.Peer
		if role == flow.RoleServer {
			end = r.Local
		}
		return r.Namespace == h.ns.Inode && r.Role == role && end == server
	}
}

// TestNetworkTrouble causes one kind of network trouble after another between
// two hosts.
func TestNetworkTrouble(t *testing.T) {
	client, server := pair(t, 1)
	_, s := start(t, fast(), Options{})
	s.watched(t, client, server)
	s.watched(t, server, client)
	v4 := func(port int) string { return netip.AddrPortFrom(server.address, uint16(port)).String() }

	t.Run("none", func(t *testing.T) {
		to := server.serve("tcp", v4(8000), discard)
		conn := client.mustDial(to)
		if _, err := conn.Write(make([]byte, 1_000_000)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		closed := func(r flow.Row) bool { return r.Closed }
		c := s.await(t, "client", at(client, flow.RoleClient, to), closed)
		v := s.await(t, "server", at(server, flow.RoleServer, to), closed)
		if c.BytesSent != 1_000_000 || c.Connections != 1 || c.Reason != flow.EndOrderly || c.Resets+c.ConnectFailures+c.Timeouts != 0 || c.RTT == 0 {
			t.Errorf("client's row %+v", c)
		}
		if v.BytesReceived-1_000_000 > 1 || v.Connections != 1 || v.Reason != flow.EndOrderly {
			t.Errorf("server's row %+v", v)
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		to := server.serve("tcp", "[fd00:99:1::2]:8001", discard)
		conn := client.mustDial(to)
		if _, err := conn.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed && r.BytesSent == 1000 })
		s.await(t, "server", at(server, flow.RoleServer, to), func(r flow.Row) bool { return r.Closed && r.BytesReceived >= 1000 })
	})
	t.Run("IPv4 on a socket of IPv6", func(t *testing.T) {
		server.serve("tcp", "[::]:8002", discard)
		to := netip.AddrPortFrom(server.address, 8002)
		conn := client.mustDial(to)
		conn.Close()
		s.await(t, "server", at(server, flow.RoleServer, to), func(r flow.Row) bool { return r.Closed && r.Connections == 1 })
	})
	t.Run("loss", func(t *testing.T) {
		server.filter("tcp dport 8003 numgen inc mod 20 == 19 drop")
		defer server.filter()
		to := server.serve("tcp", v4(8003), discard)
		conn := client.mustDial(to)
		if _, err := conn.Write(make([]byte, 3_000_000)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed })
		if r.Retransmits < 10 || r.RetransmittedBytes == 0 || r.BytesSent != 3_000_000 {
			t.Errorf("client's row %+v", r)
		}
	})
	t.Run("dropped SYN, short timeout", func(t *testing.T) {
		server.filter("tcp dport 8004 drop")
		defer server.filter()
		to := netip.AddrPortFrom(server.address, 8004)
		if _, err := client.dial(to, 100*time.Millisecond); err == nil {
			t.Fatal("connected")
		}
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.ConnectFailures == 1 })
		if r.Connections != 0 || r.Reason != flow.EndConnectFailed {
			t.Errorf("client's row %+v", r)
		}
	})
	t.Run("dropped SYN, long timeout", func(t *testing.T) {
		server.filter("tcp dport 8005 drop")
		defer server.filter()
		to := netip.AddrPortFrom(server.address, 8005)
		if _, err := client.dial(to, 2500*time.Millisecond); err == nil {
			t.Fatal("connected")
		}
		s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.ConnectFailures == 1 && r.Retransmits >= 1 })
	})
	t.Run("refused to a blocking connect", func(t *testing.T) {
		err := netns.Do(client.ns, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 8006, Addr: server.address.As4()})
			return errors.Join(err, unix.Close(fd))
		})
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("connect = %v", err)
		}
		// The kernel has cleared the port by then; the namespace's address is
		// known.
		match := at(client, flow.RoleClient, netip.AddrPortFrom(server.address, 0))
		s.await(t, "client", func(r *flow.Row) bool { return match(r) && r.Local.Addr() == client.address }, func(r flow.Row) bool { return r.ConnectFailures == 1 })
	})
	t.Run("receiver that stops reading", func(t *testing.T) {
		resume := make(chan struct{})
		to := server.serve("tcp", v4(8007), func(conn net.Conn) { <-resume; discard(conn) })
		conn := client.mustDial(to)
		wrote := make(chan error, 1)
		go func() { _, err := conn.Write(make([]byte, 20_000_000)); wrote <- err }()
		// The row must come while the connection lives.
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.ReceiveWindowLimited > 500_000 })
		if r.Busy < r.ReceiveWindowLimited || r.Closed {
			t.Errorf("client's row %+v", r)
		}
		close(resume)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		conn.Close()
		s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed && r.BytesSent == 20_000_000 })
	})
	t.Run("client that closes first, server that keeps its end open", func(t *testing.T) {
		release := make(chan struct{})
		to := server.serve("tcp", v4(8020), func(conn net.Conn) { <-release })
		defer close(release)
		conn := client.mustDial(to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed })
		if r.Reason != flow.EndOrderly || r.BytesSent != 5 {
			t.Errorf("client's row %+v", r)
		}
		// Dumps now show the client's end as FIN-WAIT-2. The row of another
		// connection that lives for three dumps shows that they have run.
		other := client.mustDial(server.serve("tcp", v4(8021), discard))
		defer other.Close()
		second := at(client, flow.RoleClient, netip.AddrPortFrom(server.address, 8021))
		for n := range 3 {
			if _, err := other.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			s.await(t, "other connection", second, func(r flow.Row) bool { return r.BytesSent == uint64(n+1) })
		}
		if r, n := s.sum(at(client, flow.RoleClient, to)); r.ConnectFailures != 0 || r.Connections != 1 {
			t.Errorf("%d rows of the client, together %+v", n, r)
		}
	})
	t.Run("server that closes first, client's pool that closes later", func(t *testing.T) {
		to := server.serve("tcp", v4(8022), func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 5))
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) { // the kernel forgets the closed end after a second
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_LINGER2, 1)
				})
			}
			if err != nil {
				t.Error(err)
			}
		})
		conn := client.mustDial(to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("read = %v", err)
		}
		s.await(t, "server", at(server, flow.RoleServer, to), func(r flow.Row) bool { return r.Closed })
		// Once the server's end is gone, it answers whatever comes by a reset.
		wait.Until(t, "server's end is forgotten", func() bool {
			var sockets int
			_ = netns.Do(server.ns, func() error {
				out, err := exec.Command("ss", "-Htan", "state", "fin-wait-2", "sport", "=", "8022").Output()
				if err != nil {
					t.Fatal(err)
				}
				sockets = len(strings.TrimSpace(string(out)))
				return nil
			})
			return sockets == 0
		})
		conn.Close()
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed })
		if r.Reason != flow.EndOrderly || r.Resets != 0 {
			t.Errorf("client's row %+v", r)
		}
	})
	t.Run("reset in the middle", func(t *testing.T) {
		to := server.serve("tcp", v4(8008), echo)
		conn := client.mustDial(to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		server.filter("tcp dport 8008 reject with tcp reset")
		defer server.filter()
		if _, err := conn.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read = %v", err)
		}
		conn.Close()
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed })
		if r.Resets != 1 || r.Connections != 1 || r.Reason != flow.EndReset || r.BytesSent != 9 {
			t.Errorf("client's row %+v", r)
		}
	})
	t.Run("server that closes with SO_LINGER 0", func(t *testing.T) {
		to := server.serve("tcp", v4(8009), func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 5))
			_ = conn.(*net.TCPConn).SetLinger(0)
		})
		conn := client.mustDial(to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read = %v", err)
		}
		conn.Close()
		s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Resets == 1 && r.Connections == 1 })
		// The kernel has cleared the client's port at the server's end.
		s.await(t, "server", func(r *flow.Row) bool {
			return r.Namespace == server.ns.Inode && r.Local == to && r.Peer == netip.AddrPortFrom(client.address, 0)
		}, func(r flow.Row) bool { return r.Resets == 1 && r.Role == flow.RoleServer })
	})
	t.Run("peer that vanishes", func(t *testing.T) {
		to := server.serve("tcp", v4(8010), echo)
		conn := client.mustDial(to)
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2000) }); err != nil {
			t.Fatal(err)
		}
		server.filter("tcp dport 8010 drop")
		defer server.filter()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Fatalf("read = %v", err)
		}
		conn.Close()
		r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed })
		if r.Timeouts != 1 || r.Resets != 0 || r.Retransmits == 0 {
			t.Errorf("client's row %+v", r)
		}
	})
}

// TestShortConnections: each of many connections of about a millisecond yields
// one row at either end.
func TestShortConnections(t *testing.T) {
	client, server := pair(t, 2)
	_, s := start(t, agentconfig.Flow{Enabled: true, DumpInterval: time.Second, ReportInterval: 10 * time.Second}, Options{})
	s.watched(t, client, server)
	s.watched(t, server, client)
	const n = 1000
	to := server.serve("tcp", netip.AddrPortFrom(server.address, 8000).String(), echo)
	for range n {
		conn := client.mustDial(to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	all := func(r flow.Row) bool { return r.Connections == n }
	c := s.await(t, "client", at(client, flow.RoleClient, to), all)
	v := s.await(t, "server", at(server, flow.RoleServer, to), all)
	if c.BytesSent != 5*n || v.BytesSent != 5*n || c.Resets+v.Resets+c.ConnectFailures+v.ConnectFailures != 0 {
		t.Errorf("client %+v\nserver %+v", c, v)
	}
}

// TestOverrun: when destroy notifications are lost, connections that a dump had
// shown are still closed, and their activity is counted once.
func TestOverrun(t *testing.T) {
	client, server := pair(t, 6)
	reg := prometheus.NewRegistry()
	_, s := start(t, fast(), Options{Registerer: reg, ReceiveBuffer: 1}) // the kernel grants its minimum
	s.watched(t, client, server)
	to := server.serve("tcp", netip.AddrPortFrom(server.address, 8000).String(), discard)
	flood := server.serve("tcp", netip.AddrPortFrom(server.address, 8001).String(), discard)
	const n = 20
	old := make([]net.Conn, n)
	for i := range old {
		conn := client.mustDial(to)
		if _, err := conn.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		old[i] = conn
	}
	match := at(client, flow.RoleClient, to)
	s.await(t, "living", match, func(r flow.Row) bool { return r.BytesSent == 1000*n })
	for i := range 10 * n {
		client.mustDial(flood).Close()
		if i%10 == 0 {
			old[i/10].Close()
		}
	}
	wait.Until(t, "overrun", func() bool { return prom.Value(t, reg, "metaflow_capture_overruns_total") > 0 })
	wait.Until(t, "all connections closed", func() bool {
		_, ended := s.sum(func(r *flow.Row) bool { return match(r) && r.Closed })
		return ended >= n // a late notification adds a row to that of the dump
	})
	if sum, _ := s.sum(match); sum.BytesSent != 1000*n || sum.Connections != n || sum.ConnectFailures+sum.Resets+sum.Timeouts != 0 {
		t.Errorf("rows add up to %+v", sum)
	}
}

// TestReconfigured: activity while capture is disabled is not counted, activity
// before and after is counted once. The same holds for excluded connections.
func TestReconfigured(t *testing.T) {
	client, server := pair(t, 3)
	on := agentconfig.Flow{Enabled: true, DumpInterval: 100 * time.Millisecond, ReportInterval: 100 * time.Millisecond}
	reg := prometheus.NewRegistry()
	c, s := start(t, on, Options{Registerer: reg})
	s.watched(t, client, server)
	to := server.serve("tcp", netip.AddrPortFrom(server.address, 8000).String(), discard)
	conn := client.mustDial(to)
	write := func(n int) {
		t.Helper()
		if _, err := conn.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	seen := func(sent uint64) flow.Row {
		t.Helper()
		return s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.BytesSent == sent })
	}
	write(1000)
	seen(1000)

	off := on
	off.Enabled = false
	c.Configure(off)
	wait.Until(t, "capture ends", func() bool { return prom.Value(t, reg, "metaflow_capture_network_namespaces") == 0 })
	write(100)
	c.Configure(on)
	s.forget()
	s.watched(t, client, server)
	write(10)
	seen(10)

	// A busy loop may go around several times before it takes the configuration, and rows of
	// before come later than its dumps.
	reconfigure := func(cfg agentconfig.Flow) {
		t.Helper()
		c.Configure(cfg)
		wait.Until(t, "the configuration is taken", func() bool { return len(c.changed) == 0 })
		dumps := prom.Value(t, reg, "metaflow_capture_dump_duration_seconds")
		wait.Until(t, "dumps", func() bool {
			return prom.Value(t, reg, "metaflow_capture_dump_duration_seconds") > dumps+3*prom.Value(t, reg, "metaflow_capture_network_namespaces")
		})
		s.watched(t, client, server)
	}
	excluded := on
	excluded.ExcludePorts = []agentconfig.PortRange{{First: 8000, Last: 8000}}
	reconfigure(excluded)
	s.forget()
	write(100)
	second := client.mustDial(to)
	second.Close()
	s.watched(t, client, server)
	if _, n := s.sum(at(client, flow.RoleClient, to)); n > 0 {
		t.Errorf("%d rows of excluded connections", n)
	}
	reconfigure(on)
	write(1)
	conn.Close()
	r := s.await(t, "client", at(client, flow.RoleClient, to), func(r flow.Row) bool { return r.Closed })
	if r.BytesSent > 1 || r.Connections != 0 {
		t.Errorf("rows after the exclusion ended %+v", r)
	}
}

func (s *sink) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = nil
}

// TestNamespacesComeAndGo: a namespace created later is watched within seconds
// and released when it is removed. Its end of the veth pair disappears only
// when nobody holds a socket inside.
func TestNamespacesComeAndGo(t *testing.T) {
	home, _ := pair(t, 4)
	c, s := start(t, fast(), Options{})
	s.watched(t, home, home)
	client, server := pair(t, 5)
	s.watched(t, client, server)
	if ns, ok := c.namespaceOf(client.ns.Inode); !ok || ns.Name != client.name {
		t.Errorf("Namespace = %+v, %t", ns, ok)
	}
	command(t, "ip", "netns", "del", client.name)
	wait.Until(t, "the removed namespace is released", func() bool {
		return exec.Command("ip", "-n", server.name, "link", "show", "eth0").Run() != nil
	})
	if _, ok := c.namespaceOf(client.ns.Inode); !ok {
		t.Error("the removed namespace was forgotten at once")
	}
	if got := c.Exceptions(); len(got) > 0 && !strings.Contains(strings.Join(got, ""), "PID namespace") {
		t.Errorf("exceptions %q", got)
	}
}

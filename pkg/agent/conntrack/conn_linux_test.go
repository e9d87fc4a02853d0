package conntrack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/nat"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// space creates a network namespace with nft rules, and removes it when the
// test ends.
func space(t *testing.T, rules string) netns.Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to create network namespaces")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian packages iproute2 and nftables)", tool)
		}
	}
	name := fmt.Sprintf("mfc%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("cannot create network namespaces here: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	run("-n", name, "link", "set", "lo", "up")
	run("-n", name, "addr", "add", "10.97.0.1/32", "dev", "lo")
	run("-n", name, "addr", "add", "fd00:97::1/128", "dev", "lo")
	run("-n", name, "route", "add", "10.97.9.0/24", "dev", "lo")
	run("-n", name, "-6", "route", "add", "fd00:97:9::/64", "dev", "lo")
	cmd := exec.Command("ip", "netns", "exec", name, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("cannot translate addresses here: %v: %s", err, out)
	}
	found, _, err := netns.NewScanner(netns.Options{}).Scan()
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range found {
		if ns.Name == name {
			return ns
		}
	}
	t.Fatal("namespace not found")
	return netns.Namespace{}
}

// TestRealTranslations: new translated connections are reported, those that
// exist are dumped, and others are neither.
func TestRealTranslations(t *testing.T) {
	ns := space(t, `
table ip nat {
  chain output {
    type nat hook output priority -100
    ip daddr 10.97.9.9 tcp dport 80 dnat to 10.97.0.1:8080
  }
  chain postrouting {
    type nat hook postrouting priority 100
    ip daddr 10.97.0.1 tcp dport 8080 snat to 10.97.0.1:20000-30000
  }
}
table ip6 nat {
  chain output {
    type nat hook output priority -100
    ip6 daddr fd00:97:9::9 tcp dport 80 dnat to [fd00:97::1]:8080
  }
}
`)
	inside := func(f func() error) {
		t.Helper()
		if err := netns.Do(ns, f); err != nil {
			t.Fatal(err)
		}
	}
	dial := func(to string) net.Conn {
		t.Helper()
		var conn net.Conn
		inside(func() (err error) {
			conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(to)))
			return err
		})
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	open := func() *Conn {
		t.Helper()
		var c *Conn
		inside(func() (err error) {
			c, err = Open(1 << 20)
			return err
		})
		t.Cleanup(c.Close)
		if !c.Reports() {
			t.Skip("needs net.netfilter.nf_conntrack_events to be on")
		}
		return c
	}
	var l net.Listener
	inside(func() (err error) {
		l, err = net.ListenTCP("tcp", &net.TCPAddr{Port: 8080})
		return err
	})
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()

	b := NewBuffer()
	c := open()
	if err := c.Dump(b, func(*nat.Connection) { t.Error("a connection before any") }); err != nil {
		t.Fatal(err)
	}
	check := func(how string, got []nat.Connection, conns ...net.Conn) {
		t.Helper()
		for _, conn := range conns {
			local, peer := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
			found := 0
			for _, x := range got {
				if x.From != local || x.To != peer {
					continue
				}
				found++
				if x.UDP || x.ReplyFrom.Port() != 8080 || x.ReplyFrom.Addr() != local.Addr() || local.Addr().Is4() && x.ReplyTo.Port()/10000 != 2 {
					t.Errorf("%s: %+v", how, x)
				}
			}
			if found == 0 {
				t.Errorf("%s: %s -> %s is missing among %+v", how, local, peer, got)
			}
		}
	}
	plain := dial("[fd00:97::1]:8080")
	four, six := dial("10.97.9.9:80"), dial("[fd00:97:9::9]:80")
	var got []nat.Connection
	wait.Until(t, "two reports", func() bool {
		_, _, err := c.Read(b, 100, func(x *nat.Connection) { got = append(got, *x) })
		if err != nil {
			t.Fatal(err)
		}
		return len(got) >= 2
	})
	check("reported", got, four, six)

	got = nil
	dumped := func(x *nat.Connection) { got = append(got, *x) }
	late := open() // after the connections
	if err := late.Dump(b, dumped); err != nil {
		t.Fatal(err)
	}
	check("dumped", got, four, six)
	for _, x := range got {
		if local := netip.MustParseAddrPort(plain.LocalAddr().String()); x.From == local {
			t.Errorf("not translated, but dumped: %+v", x)
		}
	}
	if n, more, err := late.Read(b, 100, dumped); n != 0 || more || err != nil {
		t.Errorf("old connections reported: %d, %t, %v", n, more, err)
	}
}

// TestOverrun: lost reports are an error, and the dump still knows the
// connections.
func TestOverrun(t *testing.T) {
	ns := space(t, `
table ip nat {
  chain output {
    type nat hook output priority -100
    ip daddr 10.97.9.9 tcp dport 80 dnat to 10.97.0.1:8080
  }
}
`)
	const n = 100
	var c *Conn
	err := netns.Do(ns, func() (err error) {
		if c, err = Open(1); err != nil { // the kernel grants its minimum
			return err
		}
		for range n { // refused, but tracked
			conn, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(10, 97, 9, 9), Port: 80})
			if err == nil {
				conn.Close()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.Reports() {
		t.Skip("needs net.netfilter.nf_conntrack_events to be on")
	}
	reports, lost := 0, false
	for range n {
		_, more, err := c.Read(NewBuffer(), n, func(*nat.Connection) { reports++ })
		lost = lost || errors.Is(err, ErrOverrun)
		if err != nil && !lost {
			t.Fatal(err)
		}
		if !more {
			break
		}
	}
	if !lost || reports == 0 || reports >= n {
		t.Errorf("%d reports of %d connections, overrun %t", reports, n, lost)
	}
}

package packet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// pair creates two network namespaces joined by a veth pair with a VLAN on it,
// and removes them when the test ends.
func pair(t *testing.T) (client, server netns.Namespace) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to create network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (Debian package iproute2)")
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	var names [2]string
	for i := range names {
		names[i] = fmt.Sprintf("mfp%d-%d", os.Getpid(), i)
		if out, err := exec.Command("ip", "netns", "add", names[i]).CombinedOutput(); err != nil {
			t.Skipf("cannot create network namespaces here: %v %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", names[i]).Run() })
	}
	ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
	found, _, err := netns.NewScanner(netns.Options{}).Scan()
	if err != nil {
		t.Fatal(err)
	}
	var spaces [2]netns.Namespace
	for i, name := range names {
		for _, device := range []string{"lo", "eth0"} {
			ip("-n", name, "link", "set", device, "up")
		}
		ip("-n", name, "addr", "add", fmt.Sprintf("10.98.1.%d/24", i+1), "dev", "eth0")
		ip("-n", name, "addr", "add", fmt.Sprintf("fd00:98::%d/64", i+1), "dev", "eth0", "nodad")
		if out, err := exec.Command("ip", "-n", name, "link", "add", "link", "eth0", "name", "vlan7", "type", "vlan", "id", "7").CombinedOutput(); err != nil {
			t.Logf("without a VLAN: %v: %s", err, out)
		} else {
			ip("-n", name, "addr", "add", fmt.Sprintf("10.98.2.%d/24", i+1), "dev", "vlan7")
			ip("-n", name, "link", "set", "vlan7", "up")
		}
		for _, ns := range found {
			if ns.Name == name {
				spaces[i] = ns
			}
		}
	}
	return spaces[0], spaces[1]
}

func inside(t *testing.T, ns netns.Namespace, f func() error) {
	t.Helper()
	if err := netns.Do(ns, f); err != nil {
		t.Fatal(err)
	}
}

// listen opens a UDP socket inside a namespace.
func listen(t *testing.T, ns netns.Namespace, address string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	inside(t, ns, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestRealPackets: the socket shows questions and answers of its namespace over
// every kind of device, with the kernel's times, and nothing else.
func TestRealPackets(t *testing.T) {
	client, server := pair(t)
	var c, resolver *Conn
	open := func(ns netns.Namespace) (c *Conn) {
		inside(t, ns, func() (err error) {
			c, err = Open(1 << 20)
			return err
		})
		t.Cleanup(c.Close)
		return c
	}
	c, resolver = open(client), open(server)
	b := NewBuffer()
	if n, err := c.Read(b, 1000, func(*Packet) {}); n != 0 || err != nil {
		t.Fatalf("idle: %d packets, %v", n, err)
	}

	answer53 := listen(t, server, "[::]:53")
	go func() {
		buffer := make([]byte, 70_000)
		for {
			n, from, err := answer53.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = answer53.WriteToUDPAddrPort(append(buffer[:n:n], "-answer"...), from)
		}
	}()
	other := listen(t, server, "[::]:5353")
	local := listen(t, client, "127.0.0.1:53")
	asker := listen(t, client, "[::]:0")
	exchange := func(to, text string) {
		t.Helper()
		if _, err := asker.WriteToUDPAddrPort([]byte(text), netip.MustParseAddrPort(to)); err != nil {
			t.Fatalf("ask %s: %v", to, err)
		}
		buffer := make([]byte, 70_000)
		_ = asker.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := asker.Read(buffer); err != nil || string(buffer[:n]) != text+"-answer" {
			t.Fatalf("answer of %s: %d bytes, %v", to, n, err)
		}
	}
	began := time.Now()
	exchange("10.98.1.2:53", "four")
	exchange("[fd00:98::2]:53", "six")
	want := []string{"out four", "in four-answer", "out six", "in six-answer"}
	if err := netns.Do(client, func() error { _, err := net.InterfaceByName("vlan7"); return err }); err == nil {
		exchange("10.98.2.2:53", "vlan")
		want = append(want, "out vlan", "in vlan-answer")
	}
	long := strings.Repeat("x", 3000)
	exchange("10.98.1.2:53", long) // in three fragments each way
	want = append(want, "out "+long, "in "+long+"-answer")
	// None of these is for the filter.
	if _, err := asker.WriteToUDPAddrPort([]byte("another port"), netip.MustParseAddrPort("10.98.1.2:5353")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.ReadFromUDPAddrPort(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	// Over loopback, a packet is sent and received by the same device.
	if _, err := asker.WriteToUDPAddrPort([]byte("lo"), netip.MustParseAddrPort("127.0.0.1:53")); err != nil {
		t.Fatal(err)
	}
	_, from, err := local.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.WriteToUDPAddrPort([]byte("lo-answer"), from); err != nil {
		t.Fatal(err)
	}
	want = append(want, "out lo", "in lo-answer")

	devices := map[string]map[int]bool{}
	var order []string
	wait.Until(t, "the last packet", func() bool {
		if err := pollIn(c); err != nil {
			return false
		}
		_, err := c.Read(b, 1000, func(p *Packet) {
			header := 20 + 8
			if p.Data[0]>>4 == 6 {
				header = 40 + 8
			}
			text := "in " + string(p.Data[header:])
			if p.Outgoing {
				text = "out " + string(p.Data[header:])
			}
			if devices[text] == nil {
				devices[text] = map[int]bool{}
				order = append(order, text)
			}
			devices[text][p.Interface] = true
			if at := time.Unix(0, p.Time); at.Before(began.Add(-time.Millisecond)) || at.After(time.Now().Add(time.Millisecond)) {
				t.Errorf("%.20q at %s, not since %s", text, at, began)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return len(order) > 0 && order[len(order)-1] == "in lo-answer"
	})
	for i := range want { // a long packet is cut off: in the first fragment
		if i >= len(order) || !strings.HasPrefix(want[i], order[i]) || len(order[i]) < min(len(want[i]), 1400) {
			t.Fatalf("packet %d of %d is %.40q", i, len(order), order[min(i, len(order)-1)])
		}
	}
	if len(order) != len(want) {
		t.Errorf("%d packets, want %d", len(order), len(want))
	}
	if len(devices["out four"]) != 1 || len(devices["in lo-answer"]) != 1 {
		t.Errorf("devices %v", devices)
	}
	if n := c.Dropped(); n != 0 {
		t.Errorf("%d packets dropped", n)
	}
	// The resolver's own socket shows none of its clients' packets.
	if n, err := resolver.Read(b, 1000, func(p *Packet) { t.Errorf("resolver sees %x", p.Data) }); n != 0 || err != nil {
		t.Errorf("%d packets of the resolver, %v", n, err)
	}
}

// pollIn waits for packets.
func pollIn(c *Conn) error {
	fds := []unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, 1000)
	if err == nil && fds[0].Revents&unix.POLLIN == 0 {
		return errors.New("nothing to read")
	}
	return err
}

// TestDropped: packets beyond the buffer are counted.
func TestDropped(t *testing.T) {
	client, _ := pair(t)
	var c *Conn
	inside(t, client, func() (err error) {
		c, err = Open(1) // the kernel grants its minimum
		return err
	})
	defer c.Close()
	listen(t, client, "127.0.0.1:53")
	asker := listen(t, client, "127.0.0.1:0")
	const n = 200
	for range n {
		if _, err := asker.WriteToUDPAddrPort([]byte("question"), netip.MustParseAddrPort("127.0.0.1:53")); err != nil {
			t.Fatal(err)
		}
	}
	read, err := c.Read(NewBuffer(), n, func(*Packet) {})
	if dropped := c.Dropped(); err != nil || dropped == 0 || read+int(dropped) != n {
		t.Errorf("%d packets read, %d dropped, %v", read, dropped, err)
	}
}

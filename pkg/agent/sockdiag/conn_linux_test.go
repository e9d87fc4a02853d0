package sockdiag

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
)

func openConn(t *testing.T) *Conn {
	t.Helper()
	c, err := Open()
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("this kernel has no sock_diag: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// connection returns both ends of a TCP connection over loopback, and its
// listener.
func connection(t *testing.T, network, address string) (client, server net.Conn, listener net.Listener) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("%s is not available: %v", network, err)
	}
	t.Cleanup(func() { l.Close() })
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, l
}

func addr(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(a.String())
}

func TestDump(t *testing.T) {
	for _, perFamily := range []bool{false, true} {
		for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
			t.Run(network, func(t *testing.T) {
				c := openConn(t)
				c.perFamily = perFamily
				client, server, l := connection(t, network, address)
				if _, err := client.Write(make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				if _, err := server.Read(make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				found := map[netip.AddrPort]flow.Socket{}
				if err := c.Dump(NewBuffer(), Connections, func(s *flow.Socket) { found[s.Local] = *s }); err != nil {
					t.Fatal(err)
				}
				got := found[addr(t, client.LocalAddr())]
				if got.State != flow.StateEstablished || got.Peer != addr(t, l.Addr()) || got.Cookie == 0 || got.Info.BytesSent != 1000 || got.Info.RTT == 0 {
					t.Errorf("client is %+v", got)
				}
				if got := found[addr(t, l.Addr())]; got.Info.BytesReceived != 1000 && got.State != flow.StateListen {
					t.Errorf("server is %+v", got)
				}
				found = map[netip.AddrPort]flow.Socket{}
				if err := c.Dump(NewBuffer(), Listening, func(s *flow.Socket) { found[s.Local] = *s }); err != nil {
					t.Fatal(err)
				}
				if _, ok := found[addr(t, client.LocalAddr())]; ok {
					t.Error("a dump of listening sockets shows a client")
				}
				if got := found[addr(t, l.Addr())]; got.State != flow.StateListen {
					t.Errorf("listener is %+v", got)
				}
			})
		}
	}
}

// readUntil collects destroy notifications until done accepts them.
func readUntil(t *testing.T, c *Conn, done func(map[netip.AddrPort]flow.Socket) bool) {
	t.Helper()
	b := NewBuffer()
	all := map[netip.AddrPort]flow.Socket{}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		<-tick.C
		if _, _, err := c.ReadDestroyed(b, 1000, func(s *flow.Socket) { all[s.Local] = *s }); err != nil {
			t.Fatal(err)
		}
		if done(all) {
			return
		}
	}
	t.Fatal("no destroy notification")
}

func TestReadDestroyed(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			c := openConn(t)
			granted, err := c.Subscribe(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			if granted < 1<<16 {
				t.Errorf("granted %d bytes", granted)
			}
			client, server, _ := connection(t, network, address)
			local, peer := addr(t, client.LocalAddr()), addr(t, server.LocalAddr())
			if _, err := client.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Read(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			client.Close()
			server.Close()
			readUntil(t, c, func(all map[netip.AddrPort]flow.Socket) bool {
				s, ok := all[local]
				if ok && (s.Peer != peer || s.State != flow.StateClose || s.Info.BytesSent != 1000) {
					t.Errorf("client's destroy notification is %+v", s)
				}
				return ok
			})
		})
	}
}

func TestOverrun(t *testing.T) {
	c := openConn(t)
	if _, err := c.Subscribe(1); err != nil { // the kernel grants its minimum, room for one or two
		t.Fatal(err)
	}
	for range 20 {
		client, server, _ := connection(t, "tcp4", "127.0.0.1:0")
		client.Close()
		server.Close()
	}
	b := NewBuffer()
	var overrun bool
	ours := map[netip.AddrPort]bool{}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		<-tick.C
		var after bool
		_, _, err := c.ReadDestroyed(b, 1000, func(s *flow.Socket) { after = after || ours[s.Local] })
		switch {
		case errors.Is(err, ErrOverrun):
			overrun = true
		case err != nil:
			t.Fatal(err)
		case overrun && after:
			return // the overrun was reported, and later notifications arrived
		}
		client, server, _ := connection(t, "tcp4", "127.0.0.1:0")
		ours[addr(t, client.LocalAddr())] = true
		client.Close()
		server.Close()
	}
	t.Fatalf("overrun reported: %t, but no later notification arrived", overrun)
}

func BenchmarkDump(b *testing.B) {
	c, err := Open()
	if err != nil {
		b.Skip(err)
	}
	defer c.Close()
	buf := NewBuffer()
	for _, states := range []States{Listening, Connections} {
		b.Run(map[States]string{Listening: "listening", Connections: "connections"}[states], func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n = 0
				if err := c.Dump(buf, states, func(*flow.Socket) { n++ }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n), "sockets")
		})
	}
}

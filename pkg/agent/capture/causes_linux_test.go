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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// any waits until done accepts one of the matching rows, and returns it.
func (s *sink) any(t *testing.T, what string, match, done func(*flow.Row) bool) flow.Row {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		for i := range s.rows {
			if r := s.rows[i]; match(&r) && done(&r) {
				s.mu.Unlock()
				return r
			}
		}
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-deadline:
			_, n := s.sum(match)
			t.Fatalf("%s: none of %d rows", what, n)
		}
	}
}

// TestCauses causes what looks alike to users, and tells it apart.
func TestCauses(t *testing.T) {
	client, server := pair(t, 7)
	_, s := start(t, agentconfig.Flow{Enabled: true, DumpInterval: 250 * time.Millisecond, ReportInterval: 250 * time.Millisecond}, Options{})
	s.watched(t, client, server)
	s.watched(t, server, client)
	at4 := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(server.address, port) }
	closed := func(r *flow.Row) bool { return r.Closed }

	t.Run("refused", func(t *testing.T) {
		if _, err := client.dial(at4(8101), time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dial = %v", err)
		}
		if r := s.any(t, "client", at(client, flow.RoleClient, at4(8101)), closed); r.ConnectFailures != 1 || r.Refused != 1 {
			t.Errorf("client's row %+v", r)
		}
	})
	t.Run("refused to a blocking connect", func(t *testing.T) {
		_ = netns.Do(client.ns, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			_ = unix.Bind(fd, &unix.SockaddrInet4{Port: 8102, Addr: client.address.As4()})
			return errors.Join(unix.Connect(fd, &unix.SockaddrInet4{Port: 8102, Addr: server.address.As4()}), unix.Close(fd))
		})
		r := s.any(t, "client", func(r *flow.Row) bool { return r.Namespace == client.ns.Inode && r.Local.Port() == 8102 }, closed)
		if r.ConnectFailures != 1 || r.Refused != 1 {
			t.Errorf("client's row %+v", r)
		}
	})
	for name, timeout := range map[string]time.Duration{"swallowed": 1500 * time.Millisecond, "swallowed, no time for a repetition": 200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			to := at4(uint16(8103 + timeout/time.Second))
			server.filter(fmt.Sprintf("tcp dport %d drop", to.Port()))
			defer server.filter()
			if _, err := client.dial(to, timeout); err == nil {
				t.Fatal("connected")
			}
			if r := s.any(t, "client", at(client, flow.RoleClient, to), closed); r.ConnectFailures != 1 || r.Refused != 0 {
				t.Errorf("client's row %+v", r)
			}
		})
	}
	t.Run("accept queue full", func(t *testing.T) {
		var fd int
		err := netns.Do(server.ns, func() (err error) {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 8105, Addr: server.address.As4()}), unix.Listen(fd, 2))
		})
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for range 4 {
			if conn, err := client.dial(at4(8105), 300*time.Millisecond); err == nil {
				defer conn.Close()
			}
		}
		r := s.any(t, "listener", func(r *flow.Row) bool { return r.Namespace == server.ns.Inode && r.Local == at4(8105) }, func(r *flow.Row) bool { return r.AcceptQueueFull > 0 })
		if r.Peer.Port() != 0 || r.Role != flow.RoleServer || r.Connections != 0 || r.Cookie == 0 || r.End-r.Start > int64(10*time.Second) {
			t.Errorf("listener's row %+v", r)
		}
	})
	t.Run("process that does not read", func(t *testing.T) {
		resume := make(chan struct{})
		to := server.serve("tcp", at4(8106).String(), func(conn net.Conn) { <-resume; echo(conn) })
		conn := client.mustDial(to)
		defer conn.Close()
		if _, err := conn.Write(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
		s.any(t, "server", at(server, flow.RoleServer, to), func(r *flow.Row) bool { return r.UnreadBytes == 200 && !r.Closed })
		close(resume)
		if _, err := io.ReadFull(conn, make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
		if _, n := s.sum(func(r *flow.Row) bool { return at(client, flow.RoleClient, to)(r) && r.UnreadBytes > 0 }); n > 0 {
			t.Errorf("%d rows of the client have unread bytes", n)
		}
	})
	t.Run("client that gives up", func(t *testing.T) {
		for port, questions := range map[uint16]int{8107: 1, 8108: 3} {
			left := make(chan struct{})
			to := server.serve("tcp", at4(port).String(), func(conn net.Conn) {
				for range questions - 1 {
					_, _ = io.CopyN(conn, conn, 100)
				}
				_, _ = io.CopyN(io.Discard, conn, 100)
				<-left // too late
				_, _ = conn.Write(make([]byte, 100))
				_, _ = conn.Write(make([]byte, 100))
			})
			conn := client.mustDial(to)
			for n := range questions {
				if _, err := conn.Write(make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
				if n == questions-1 {
					_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				}
				if _, err := io.ReadFull(conn, make([]byte, 100)); (err == nil) != (n < questions-1) {
					t.Fatal(err)
				}
			}
			conn.Close()
			r := s.any(t, "client", at(client, flow.RoleClient, to), closed)
			if r.GaveUp != 1 || r.Resets+r.Timeouts+r.ConnectFailures != 0 || r.Reason != flow.EndOrderly {
				t.Errorf("%d questions: client's row %+v", questions, r)
			}
			// Another dump shows the server's end half closed. Then it answers.
			seen := func() int { _, n := s.sum(at(server, flow.RoleServer, to)); return n }
			other := client.mustDial(server.serve("tcp", at4(port+10).String(), echo))
			for n := range 3 {
				_, _ = other.Write([]byte("x"))
				s.await(t, "other connection", at(client, flow.RoleClient, at4(port+10)), func(r flow.Row) bool { return r.BytesSent == uint64(n+1) })
			}
			other.Close()
			close(left)
			if r := s.any(t, "server", at(server, flow.RoleServer, to), closed); r.Resets != 0 || r.Reason != flow.EndOrderly {
				t.Errorf("%d questions: server's row %+v, after %d", questions, r, seen())
			}
		}
	})
	t.Run("reset after the answer", func(t *testing.T) {
		done := make(chan struct{})
		to := server.serve("tcp", at4(8109).String(), func(conn net.Conn) {
			_, _ = io.CopyN(conn, conn, 5)
			<-done
			_ = conn.(*net.TCPConn).SetLinger(0)
		})
		conn := client.mustDial(to)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := retry.Sleep(t.Context(), 1200*time.Millisecond); err != nil { // the pool rests
			t.Fatal(err)
		}
		close(done)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read = %v", err)
		}
		conn.Close()
		if r := s.any(t, "client", at(client, flow.RoleClient, to), closed); r.Resets != 0 || r.Reason != flow.EndOrderly {
			t.Errorf("client's row %+v", r)
		}
	})
	t.Run("own queue", func(t *testing.T) {
		if out, err := exec.Command("tc", "-n", client.name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "4mbit", "burst", "20kb", "latency", "300ms").CombinedOutput(); err != nil {
			t.Skipf("no token bucket filter here: %v %s", err, out)
		}
		defer func() { _ = exec.Command("tc", "-n", client.name, "qdisc", "del", "dev", "eth0", "root").Run() }()
		to := server.serve("tcp", at4(8110).String(), discard)
		for range 5 { // what is usual
			client.mustDial(to).Close()
		}
		conn := client.mustDial(to)
		defer conn.Close()
		_ = conn.SetWriteDeadline(time.Now().Add(15 * time.Second))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := conn.Write(make([]byte, 10_000)); err != nil {
						return
					}
				}
			}
		})
		r := s.any(t, "client", at(client, flow.RoleClient, to), func(r *flow.Row) bool { return r.Queue > 0 })
		close(stop)
		wg.Wait()
		if r.UsualRTT == 0 || r.MaxRTT < r.UsualRTT+r.Queue || r.UnsentBytes == 0 {
			t.Errorf("client's row %+v", r)
		}
	})
}

// wire joins two network namespaces by TUN devices, with a delay.
type wire struct{ delay atomic.Int64 }

// distant creates two hosts joined by a wire.
func distant(t *testing.T, subnet int) (a, b *host, w *wire) {
	t.Helper()
	a, b = pair(t, subnet)
	w = &wire{}
	var ends [2]*os.File
	for i, h := range []*host{a, b} {
		h.address = netip.AddrFrom4([4]byte{10, 98, byte(subnet), byte(i + 1)})
		err := netns.Do(h.ns, func() error {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			ends[i] = os.NewFile(uintptr(fd), "tun")
			request, err := unix.NewIfreq("wire")
			if err != nil {
				return err
			}
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		})
		if err != nil {
			t.Skipf("no TUN devices here: %v", err)
		}
		// The descriptor is polled only once it is attached to a device.
		fd, err := unix.Dup(int(ends[i].Fd()))
		if err == nil {
			err = errors.Join(ends[i].Close(), unix.SetNonblock(fd, true))
		}
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = os.NewFile(uintptr(fd), "tun")
		command(t, "ip", "-n", h.name, "addr", "add", h.address.String()+"/24", "dev", "wire")
		command(t, "ip", "-n", h.name, "link", "set", "wire", "up")
	}
	var wg sync.WaitGroup
	for i := range ends {
		wg.Go(func() { w.carry(ends[i], ends[1-i]) })
	}
	t.Cleanup(func() {
		ends[0].Close()
		ends[1].Close()
		wg.Wait()
	})
	return a, b, w
}

// carry takes packets from one end to the other, each after the delay.
func (w *wire) carry(from, to *os.File) {
	type packet struct {
		due  time.Time
		data []byte
	}
	queue := make(chan packet, 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range queue {
			_ = retry.Sleep(context.Background(), time.Until(p.due)) // the delay under test
			_, _ = to.Write(p.data)
		}
	})
	buffer := make([]byte, 65536)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			break
		}
		queue <- packet{time.Now().Add(time.Duration(w.delay.Load())), append([]byte(nil), buffer[:n]...)}
	}
	close(queue)
	wg.Wait()
}

// TestDistance: more distance is seen within a dump, in rows of its own, and
// neither before nor after; a slow server, whose kernel delays
// acknowledgements, is no distance.
func TestDistance(t *testing.T) {
	client, server, wire := distant(t, 8)
	_, s := start(t, agentconfig.Flow{Enabled: true, DumpInterval: 500 * time.Millisecond, ReportInterval: time.Minute}, Options{})
	s.watched(t, client, server)
	var slow atomic.Bool
	to := server.serve("tcp", netip.AddrPortFrom(server.address, 8000).String(), func(conn net.Conn) {
		for {
			if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
				return
			}
			if slow.Load() {
				_ = retry.Sleep(context.Background(), 150*time.Millisecond) // the code under observation
			}
			if _, err := conn.Write(make([]byte, 10)); err != nil {
				return
			}
		}
	})
	match := at(client, flow.RoleClient, to)
	for range 5 { // what is usual
		client.mustDial(to).Close()
	}
	s.await(t, "first connections", match, func(r flow.Row) bool { return r.Connections == 5 })
	conn := client.mustDial(to)
	ask := func(until func() bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for !until() {
			if time.Now().After(deadline) {
				t.Fatal("waited in vain")
			}
			if _, err := conn.Write(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	during := func(d time.Duration) func() bool {
		end := time.Now().Add(d)
		return func() bool { return time.Now().After(end) }
	}
	far := func(r *flow.Row) bool {
		return match(r) && r.UsualRTT > 0 && r.MaxRTT > 3*r.UsualRTT && r.MaxRTT > r.UsualRTT+10_000
	}
	distance := func() int { _, n := s.sum(far); return n }
	// What a delayed acknowledgement takes. A busy machine may take longer.
	const delayed = 55_000 // microseconds

	ask(during(time.Second))
	slow.Store(true)
	ask(during(2500 * time.Millisecond))
	slow.Store(false)
	ask(during(time.Second))
	if _, n := s.sum(func(r *flow.Row) bool { return far(r) && r.MaxRTT < delayed }); n > 0 {
		t.Errorf("%d rows say that a slow server is far", n)
	}
	s.forget()
	wire.delay.Store(int64(40 * time.Millisecond)) // there and back
	began := time.Now().UnixNano()
	ask(func() bool { return distance() >= 2 })
	wire.delay.Store(0)
	over := time.Now().UnixNano()
	ask(during(1500 * time.Millisecond))
	conn.Close()
	s.await(t, "client", match, func(r flow.Row) bool { return r.Closed })
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.rows {
		r := &s.rows[i]
		if !far(r) {
			continue
		}
		if r.End < began || r.Start > over+int64(1500*time.Millisecond) || r.End-r.Start > int64(20*time.Second) || r.Queue > 0 {
			t.Errorf("far from %s to %s, distance from %s to %s: %+v", time.Unix(0, r.Start), time.Unix(0, r.End), time.Unix(0, began), time.Unix(0, over), r)
		}
	}
}

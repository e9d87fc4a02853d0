// Command flowbench measures the agent's cost of observing connections. In its
// own network namespace it keeps connections open and opens new ones at a
// steady rate. It reads what the operating system accounts to a process that
// captures their flow data and processes the rows as the agent does before it
// sends them.
//
//	go run ./integration/bench/flow -living 10000 -rate 2000
//
// Both ends of each connection are on this machine, so the capture sees two
// sockets of each; -living counts sockets, -rate connections.
//
//	go run ./integration/bench/flow -living 10000 -rate 2000 -translated -queries 1000
//
// also has the kernel translate every connection to another port, and asks a
// DNS server that many questions a second.
//
//	go run ./integration/bench/flow -busy 64 -pairs 20
//
// measures instead how much throughput a busy HTTP server, on all cores, loses
// to the capture: in pairs of adjacent windows of equal length, one with and
// one without capture, in random order.
//
// It needs root on Linux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/agent/capture"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// roleVariable turns a process into one of the programs under measurement.
const roleVariable = "FLOWBENCH_ROLE"

func main() {
	living := flag.Int("living", 10_000, "sockets to keep open")
	rate := flag.Int("rate", 2000, "connections to open and close per second")
	warm := flag.Duration("warm", 15*time.Second, "time before the measurement")
	length := flag.Duration("length", 60*time.Second, "time of the measurement")
	busy := flag.Int("busy", 0, "instead, measure the throughput of an HTTP server with this many connections")
	fresh := flag.Int("fresh", 100, "with -busy: requests after which a client opens a new connection")
	pairs := flag.Int("pairs", 20, "with -busy: pairs of times")
	window := flag.Duration("window", 4*time.Second, "with -busy: length of each time")
	translated := flag.Bool("translated", false, "translate the address of every connection")
	queries := flag.Int("queries", 0, "DNS questions to ask per second")
	idle := flag.Bool("without-capture", false, "generate the load without capturing, to compare the load's own cost")
	measured.Main("flowbench", func(ctx context.Context) error {
		switch os.Getenv(roleVariable) {
		case "capture":
			return captureFlows(ctx)
		case "load":
			return makeLoad(ctx, *living, *rate, *translated, *queries)
		case "busy":
			return serveBusy(ctx, *busy, *fresh)
		}
		if *busy > 0 {
			return compare(ctx, *busy, *fresh, *pairs, *window)
		}
		return measure(ctx, *living, *rate, *translated, *queries, *warm, *length, !*idle)
	})
}

func measure(ctx context.Context, living, rate int, translated bool, queries int, warm, length time.Duration, watch bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name, remove, err := makeNamespace(ctx)
	if err != nil {
		return err
	}
	defer remove()
	if translated {
		if err := translate(ctx, name); err != nil {
			return err
		}
	}
	arguments := []string{"-living", strconv.Itoa(living), "-rate", strconv.Itoa(rate), "-queries", strconv.Itoa(queries), "-translated=" + strconv.FormatBool(translated)}
	load, err := measured.Start(true, []string{roleVariable + "=load"}, "ip", append([]string{"netns", "exec", name, self}, arguments...)...)
	if err != nil {
		return err
	}
	defer load.Stop()
	capturing := &measured.Process{}
	if watch {
		capturing, err = measured.Start(true, []string{roleVariable + "=capture"}, self)
		if err != nil {
			return err
		}
		defer capturing.Stop()
	}
	if err := wait(ctx, warm, load, capturing); err != nil {
		return err
	}
	usage := func(p *measured.Process) (measured.Usage, error) {
		if p.Cmd == nil {
			return measured.Usage{}, nil
		}
		return p.Usage()
	}
	before, err := usage(capturing)
	if err != nil {
		return err
	}
	loadBefore, err := usage(load)
	if err != nil {
		return err
	}
	if err := wait(ctx, length, load, capturing); err != nil {
		return err
	}
	after, err := usage(capturing)
	if err != nil {
		return err
	}
	loadAfter, err := usage(load)
	if err != nil {
		return err
	}
	fmt.Printf("%d living sockets, %d connections/s (translated: %t), %d DNS questions/s: capture %.2f%% of a core, %d MB resident at most; load %.1f%% of a core\n",
		living, rate, translated, queries, 100*(after.CPU-before.CPU).Seconds()/length.Seconds(), after.Peak>>20, 100*(loadAfter.CPU-loadBefore.CPU).Seconds()/length.Seconds())
	return nil
}

// makeNamespace creates a network namespace whose loopback device is up.
func makeNamespace(ctx context.Context) (name string, remove func(), err error) {
	name = fmt.Sprintf("flowbench%d", os.Getpid())
	if out, err := exec.CommandContext(ctx, "ip", "netns", "add", name).CombinedOutput(); err != nil { //nolint:gosec // the name is made here
		return "", nil, fmt.Errorf("create network namespace: %w: %s", err, out)
	}
	remove = func() { _ = exec.Command("ip", "netns", "del", name).Run() }                                              //nolint:gosec // the name is made here
	if out, err := exec.CommandContext(ctx, "ip", "-n", name, "link", "set", "lo", "up").CombinedOutput(); err != nil { //nolint:gosec // the name is made here
		remove()
		return "", nil, fmt.Errorf("set loopback up: %w: %s", err, out)
	}
	return name, remove, nil
}

// translate makes the kernel translate connections to port 80 in the namespace.
func translate(ctx context.Context, name string) error {
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", name, "nft", "-f", "-") //nolint:gosec // the name is made here
	cmd.Stdin = strings.NewReader("table ip nat {\nchain output {\ntype nat hook output priority -100\ntcp dport 80 dnat to :8000\n}\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("translate addresses: %w: %s", err, out)
	}
	return nil
}

// askAndAnswer asks a DNS server in the same namespace that many questions a
// second for a thousand names, until ctx ends.
func askAndAnswer(ctx context.Context, wg *sync.WaitGroup, rate int) error {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53})
	if err != nil {
		return err
	}
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return errors.Join(err, server.Close())
	}
	context.AfterFunc(ctx, func() { _ = server.Close(); _ = client.Close() })
	wg.Go(func() {
		in := make([]byte, 1500)
		for {
			n, from, err := server.ReadFromUDPAddrPort(in)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(in[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response = true
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 30},
				Body:   &dnsmessage.AResource{A: [4]byte{10, 0, 0, 1}},
			}}
			if out, err := m.Pack(); err == nil {
				_, _ = server.WriteToUDPAddrPort(out, from)
			}
		}
	})
	wg.Go(func() {
		in := make([]byte, 1500)
		for {
			if _, err := client.Read(in); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		const turns = 100 // per second
		ticker := time.NewTicker(time.Second / turns)
		defer ticker.Stop()
		for n := uint16(0); ; {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			for range rate / turns {
				n++
				m := dnsmessage.Message{Header: dnsmessage.Header{ID: n}, Questions: []dnsmessage.Question{{
					Name: dnsmessage.MustNewName(fmt.Sprintf("service%d.shop.svc.cluster.local.", n%1000)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
				}}}
				if out, err := m.Pack(); err == nil {
					_, _ = client.WriteTo(out, server.LocalAddr())
				}
			}
		}
	})
	return nil
}

// wait waits for d, and fails if one of the processes ends first.
func wait(ctx context.Context, d time.Duration, load, capturing *measured.Process) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-load.Done:
		return fmt.Errorf("load ended: %s", load.Output.String())
	case <-capturing.Done:
		return fmt.Errorf("capture ended: %s", capturing.Output.String())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// encoder does what the agent does with rows before it sends them.
type encoder struct {
	process                         func(*flow.Row) string
	rows, connections, bytes, named int
	translated, queries             int
	buffer                          []byte
}

func (e *encoder) Consume(_ context.Context, rows []flow.Row) (int, error) {
	e.buffer = e.buffer[:0]
	for i := range rows {
		e.buffer = rows[i].AppendWire(e.buffer)
		e.connections += int(rows[i].Connections)
		e.queries += int(rows[i].Queries.Asked)
		if rows[i].Connections > 0 && (rows[i].Translated.IsValid() || rows[i].TranslatedPeer.IsValid()) {
			e.translated++
		}
		if e.process(&rows[i]) != "" {
			e.named++
		}
	}
	e.rows += len(rows)
	e.bytes += len(e.buffer)
	return len(rows), nil
}

func captureFlows(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	e := &encoder{}
	began := time.Now()
	cfg := agentconfig.Default().Flow
	cfg.Enabled, cfg.ExcludeCIDRs = true, nil // the load is on loopback
	c := capture.New(cfg, e, capture.Options{Logger: log})
	e.process = c.Process
	err := c.Run(ctx)
	seconds := time.Since(began).Seconds()
	fmt.Fprintf(os.Stderr, "capture: %.0f rows/s, %.0f connections/s (both ends), %.0f KB/s, %.0f%% of the rows with a process, %.0f translated connections/s, %.0f DNS questions/s\n",
		float64(e.rows)/seconds, float64(e.connections)/seconds, float64(e.bytes)/seconds/1000, 100*float64(e.named)/float64(max(e.rows, 1)),
		float64(e.translated)/seconds, float64(e.queries)/seconds)
	return err
}

// echo answers byte by byte: io.Copy would make the kernel do it, through two
// more descriptors per connection.
func echo(conn net.Conn) {
	var one [1]byte
	for {
		if _, err := conn.Read(one[:]); err != nil {
			return
		}
		if _, err := conn.Write(one[:]); err != nil {
			return
		}
	}
}

// makeLoad keeps connections with itself open, sends a byte on each about every
// ten seconds, and opens others.
func makeLoad(ctx context.Context, living, rate int, translated bool, queries int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	listeners := make([]net.Listener, 4)
	for i := range listeners {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.%d:8000", i+1))
		if err != nil {
			return err
		}
		defer l.Close()
		listeners[i] = l
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					echo(conn)
				})
			}
		})
	}
	port := 8000
	if translated {
		port = 80
	}
	if queries > 0 {
		if err := askAndAnswer(ctx, &wg, queries); err != nil {
			return err
		}
	}
	dial := func(i int) (net.Conn, error) {
		return net.Dial("tcp4", fmt.Sprintf("127.0.0.%d:%d", i%len(listeners)+1, port))
	}
	open := make([]net.Conn, living/2)
	for i := range open {
		conn, err := dial(i)
		if err != nil {
			return err
		}
		defer conn.Close()
		open[i] = conn
	}
	fmt.Fprintln(os.Stderr, "load:", len(open), "connections are open")

	const turns = 100 // per second
	var made, failed atomic.Int64
	began := time.Now()
	ticker := time.NewTicker(time.Second / turns)
	defer ticker.Stop()
	for turn := 0; ctx.Err() == nil; turn++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
		for i := range rate / turns {
			conn, err := dial(i)
			if err != nil {
				failed.Add(1)
				continue
			}
			one := [1]byte{1}
			if _, err := conn.Write(one[:]); err == nil {
				_, _ = io.ReadFull(conn, one[:])
			}
			conn.Close()
			made.Add(1)
		}
		for i := turn % (10 * turns); i < len(open); i += 10 * turns {
			_, _ = open[i].Write([]byte{1})
		}
	}
	fmt.Fprintf(os.Stderr, "load: %.0f connections/s, %d failed\n", float64(made.Load())/time.Since(began).Seconds(), failed.Load())
	return nil
}

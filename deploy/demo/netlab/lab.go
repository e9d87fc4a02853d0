// Package netlab runs the WebStore in network namespaces of a Linux machine: each
// service is a process with a namespace and an address of its own, and a bridge, in one more
// namespace, is the network between them. What a real network does to packets now and then
// can be asked of this one.
//
//	service ── eth0 ── bridge ── the machine itself, where the agent listens
//	service ── eth0 ──┘
//
// The namespaces have no names: they live as long as the processes, and these as long as the
// one that started the lab, however it ends. So there is nothing to clean up. On the
// machine itself stands only the end of one cable, which goes with the rest.
//
// It takes root, and the programs ip and nft; [Missing] says what is not there.
package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/metaflowys/metaflow-server/deploy/demo/webstore"
)

const (
	// servicePort is where every service listens.
	servicePort = 8080
	// firstHost is the last byte of the address of the first service.
	firstHost = 10
	// idleLimit is how long services keep connections without calls: Settle waits about twice as long.
	idleLimit = 500 * time.Millisecond
	// pollInterval is how often Settle looks at the sockets, for which the kernel goes through all of the machine's.
	pollInterval = 100 * time.Millisecond
)

// Options say what runs where.
type Options struct {
	// Program is the file of deploy/demo/service.
	Program string
	// OTLPPort is where a receiver listens on the machine, at [Lab.Host]; it need not be there yet.
	OTLPPort uint16
	// Output takes what the programs say that is no answer. Nil discards it.
	Output io.Writer
}

// Lab is a running shop. Its methods belong to one goroutine at a time.
type Lab struct {
	subnet   byte
	hub      *process
	services map[string]*process
	filtered map[string]bool // those that do not get every packet
}

// process is a program with a network namespace of its own.
type process struct {
	name    string
	cmd     *exec.Cmd
	address netip.Addr
	stdin   io.WriteCloser
	answers *bufio.Scanner
}

// Start makes the network and starts the shop. ctx bounds the start alone.
func Start(ctx context.Context, o Options) (_ *Lab, err error) {
	if missing := Missing(); missing != "" {
		return nil, errors.New("start lab: " + missing)
	}
	if o.Output == nil {
		o.Output = io.Discard
	}
	o.Output = &serial{w: o.Output}
	l := &Lab{services: map[string]*process{}, filtered: map[string]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start lab: %w", err), l.Close())
		}
	}()
	if l.subnet, err = freeSubnet(); err != nil {
		return nil, err
	}
	if l.hub, err = launch("bridge", o.Output, "cat"); err != nil {
		return nil, err
	}
	if err := l.launchServices(o); err != nil {
		return nil, err
	}
	if err := l.connect(); err != nil {
		return nil, err
	}
	return l, l.awaitReady(ctx)
}

// Host is the address of the machine, as the services know it.
func (l *Lab) Host() netip.Addr { return l.address(1) }

func (l *Lab) address(host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, l.subnet, host}) }

// Namespaces is how many there are, the bridge's included.
func (l *Lab) Namespaces() int { return len(l.services) + 1 }

// freeSubnet finds a third byte of 10.77.x.0/24 that no interface of the machine has, for two
// labs at once.
func freeSubnet() (byte, error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return 0, err
	}
	for subnet := range 256 {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(subnet), 0}), 24)
		if !slices.ContainsFunc(taken, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && prefix.Overlaps(p)
		}) {
			return byte(subnet), nil
		}
	}
	return 0, errors.New("no network of 10.77.0.0/16 is free")
}

func (l *Lab) launchServices(o Options) error {
	peers := make([]string, 0, len(webstore.Names()))
	for i, name := range webstore.Names() {
		peers = append(peers, fmt.Sprintf("%s=%s", name, netip.AddrPortFrom(l.address(byte(firstHost+i)), servicePort)))
	}
	for i, name := range webstore.Names() {
		address := l.address(byte(firstHost + i))
		p, err := launch(name, o.Output, o.Program, "-service", name, "-listen", netip.AddrPortFrom(address, servicePort).String(),
			"-peers", strings.Join(peers, ","), "-endpoint", netip.AddrPortFrom(l.Host(), o.OTLPPort).String(), "-idle", idleLimit.String())
		if err != nil {
			return err
		}
		p.address = address
		l.services[name] = p
	}
	return nil
}

// launch starts a program in a network namespace of its own.
func launch(name string, output io.Writer, program string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(program, args...)} //nolint:gosec // the program is the caller's
	isolate(p.cmd)
	p.cmd.Stderr = output
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdin, p.answers = stdin, bufio.NewScanner(stdout)
	return p, p.cmd.Start()
}

// connect lays the cables: from each service, and from the machine, to the bridge.
func (l *Lab) connect() error {
	outside := fmt.Sprintf("mflab%d", os.Getpid())
	hub := l.hub.cmd.Process.Pid
	var cables, bridge strings.Builder
	fmt.Fprintf(&cables, "link add %s type veth peer name host netns %d\n", outside, hub)
	fmt.Fprintf(&bridge, "link add bridge type bridge\nlink set bridge up\nlink set host master bridge up\n")
	for name, p := range l.services {
		port := fmt.Sprintf("host%d", p.address.As4()[3])
		fmt.Fprintf(&cables, "link add %s netns %d type veth peer name eth0 netns %d\n", port, hub, p.cmd.Process.Pid)
		fmt.Fprintf(&bridge, "link set %s alias %s\nlink set %s master bridge up\n", port, name, port)
	}
	fmt.Fprintf(&cables, "addr add %s/24 dev %s\nlink set %s up\n", l.Host(), outside, outside)
	if err := feed(cables.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	if err := l.hub.inside(bridge.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	for _, p := range l.services {
		script := fmt.Sprintf("link set lo up\nlink set eth0 up\naddr add %s/24 dev eth0\n", p.address)
		if err := p.inside(script, "ip", "-batch", "-"); err != nil {
			return err
		}
	}
	return nil
}

// feed runs a program to its end, with this input.
func feed(input, program string, args ...string) error {
	cmd := exec.Command(program, args...) //nolint:gosec // ip and nft
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", cmd, err, out)
	}
	return nil
}

// inside runs a program in the namespace of p.
func (p *process) inside(input, program string, args ...string) error {
	return enter(p.cmd.Process.Pid, func() error { return feed(input, program, args...) })
}

func (l *Lab) awaitReady(ctx context.Context) error {
	// A service that does not get ready in time is ended, which ends the wait for it.
	defer context.AfterFunc(ctx, func() {
		for _, p := range l.services {
			_ = p.cmd.Process.Kill()
		}
	})()
	for name, p := range l.services {
		if answer, err := p.answer(); err != nil || answer != "ready" {
			return errors.Join(fmt.Errorf("start %s: it says %q: %w", name, answer, err), ctx.Err())
		}
	}
	return nil
}

// answer reads one line.
func (p *process) answer() (string, error) {
	if !p.answers.Scan() {
		return "", errors.Join(io.ErrUnexpectedEOF, p.answers.Err())
	}
	return p.answers.Text(), nil
}

// tell gives a command of deploy/demo/service and returns the answer.
func (l *Lab) tell(service, command string) (string, error) {
	p := l.services[service]
	if p == nil {
		return "", fmt.Errorf("tell %s: there is no such service", service)
	}
	if _, err := io.WriteString(p.stdin, command+"\n"); err != nil {
		return "", fmt.Errorf("tell %s: %w", service, err)
	}
	answer, err := p.answer()
	if err != nil || strings.HasPrefix(answer, "error: ") {
		return "", fmt.Errorf("tell %s to %s: it says %q: %w", service, command, answer, err)
	}
	return answer, nil
}

// Tell gives a service a command that deploy/demo/service knows, such as "slow 300ms".
func (l *Lab) Tell(service, command string) error {
	_, err := l.tell(service, command)
	return err
}

// Visit lets so many visitors make their journeys, so many of them at once, and returns how many saw errors.
func (l *Lab) Visit(journeys, concurrency int) (failed int, err error) {
	answer, err := l.tell("loadgenerator", fmt.Sprintf("visit %d %d", journeys, concurrency))
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(answer, "%d visitors, %d saw errors", &journeys, &failed); err != nil {
		return 0, fmt.Errorf("read %q: %w", answer, err)
	}
	return failed, nil
}

// Freeze stops a service in whatever it does, its sockets stay open; Thaw lets it go on.
func (l *Lab) Freeze(service string) error {
	return l.services[service].cmd.Process.Signal(syscall.SIGSTOP)
}

// Thaw ends Freeze.
func (l *Lab) Thaw(service string) error {
	return l.services[service].cmd.Process.Signal(syscall.SIGCONT)
}

// Lose has the network lose one of so many packets between two services, either way: every so manyth, so that even
// a short visit is sure to meet with it.
func (l *Lab) Lose(a, b string, packets int) error {
	return l.filter(fmt.Sprintf("numgen inc mod %d == %d drop", packets, packets-1), [2]string{a, b}, [2]string{b, a})
}

// Block has the network swallow the packets that open connections from one service to another.
func (l *Lab) Block(from, to string) error {
	return l.filter("tcp flags & (syn | ack) == syn drop", [2]string{from, to})
}

// Reset has the network answer one of so many packets from one service to another as a peer does that knows
// nothing of the connection.
func (l *Lab) Reset(from, to string, packets int) error {
	return l.filter(fmt.Sprintf("tcp flags & (syn | fin | rst) == 0 numgen inc mod %d == %d reject with tcp reset", packets, packets-1), [2]string{from, to})
}

// Heal has the network carry everything again.
func (l *Lab) Heal() error { return l.filter("") }

// filter has TCP packets between these go through a rule, instead of those before. It is at the end of their way, for
// bridges know no resets.
func (l *Lab) filter(rule string, ways ...[2]string) error {
	for name := range l.filtered {
		if err := l.services[name].inside("flush ruleset\n", "nft", "-f", "-"); err != nil {
			return err
		}
		delete(l.filtered, name)
	}
	for _, way := range ways {
		from, to := l.services[way[0]], l.services[way[1]]
		if from == nil || to == nil {
			return fmt.Errorf("filter %s to %s: there is no such service", way[0], way[1])
		}
		l.filtered[way[1]] = true
		script := fmt.Sprintf("table ip lab {\nchain arriving {\ntype filter hook input priority 0;\nip saddr %s meta l4proto tcp %s\n}\n}\n", from.address, rule)
		if err := to.inside(script, "nft", "-f", "-"); err != nil {
			return err
		}
	}
	return nil
}

// Settle waits until no service has a connection to another: they close by themselves, soon after the last
// call. What only one end knows of, after a reset, is of no use any more and not waited for.
func (l *Lab) Settle(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		open, err := l.connections()
		if err != nil || len(open) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for connections to be closed: %w: %v", ctx.Err(), open)
		case <-tick.C:
		}
	}
}

// ends are those of a connection, as one of them sees it.
type ends struct{ local, peer netip.AddrPort }

// connections returns the connections between services that both ends know of.
func (l *Lab) connections() (open []ends, err error) {
	all := map[ends]bool{}
	for _, p := range l.services {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", p.cmd.Process.Pid))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			socket, state, ok := parseSocket(line)
			if !ok || state == stateTimeWait {
				continue
			}
			all[socket] = true
			if all[ends{socket.peer, socket.local}] {
				open = append(open, socket)
			}
		}
	}
	return open, nil
}

// stateTimeWait is the kernel's number of the state of a connection that is over.
const stateTimeWait = 6

// parseSocket reads a line of /proc/net/tcp, as a little-endian machine writes it.
func parseSocket(line string) (socket ends, state int, ok bool) {
	var number string
	var local, peer uint32
	var localPort, peerPort uint16
	n, err := fmt.Sscanf(strings.TrimSpace(line), "%s %X:%X %X:%X %X", &number, &local, &localPort, &peer, &peerPort, &state)
	return ends{addrPort(local, localPort), addrPort(peer, peerPort)}, state, n == 6 && err == nil
}

func addrPort(address uint32, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(address), byte(address >> 8), byte(address >> 16), byte(address >> 24)}), port)
}

// Close ends the shop, then the network. The spans that nobody took are lost.
func (l *Lab) Close() error {
	all := slices.Collect(maps.Values(l.services))
	for _, p := range all {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.stdin.Close()
	}
	var errs []error
	for _, p := range all {
		errs = append(errs, p.end())
	}
	if l.hub != nil {
		_ = l.hub.stdin.Close()
		errs = append(errs, l.hub.end())
	}
	return errors.Join(errs...)
}

// end waits for the process, and kills it if it takes too long.
func (p *process) end() error {
	defer time.AfterFunc(15*time.Second, func() { _ = p.cmd.Process.Kill() }).Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	return nil
}

// serial makes one writer out of that of several processes.
type serial struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (s *serial) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

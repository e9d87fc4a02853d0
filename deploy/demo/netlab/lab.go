// Package netlab runs the WebStore in network namespaces of a Linux machine.
// Each service is a process with its own namespace and address. A bridge in one
// more namespace connects them. The lab can drop, block and reset packets, as
// real networks do.
//
//	service ── eth0 ── bridge ── the machine itself, where the agent listens
//	service ── eth0 ──┘
//
// The namespaces have no names. They live as long as the processes, which end
// with the process that started the lab. So nothing needs to be cleaned up. The
// machine itself has only the end of one veth pair, which disappears with the
// rest.
//
// It needs root and the programs ip and nft; [namespaces.Missing] reports what is missing.
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
	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

const (
	// servicePort is the port of every service.
	servicePort = 8080
	// firstHost is the last byte of the first service's address.
	firstHost = 10
	// idleLimit is how long services keep connections without calls. Settle
	// waits about twice as long.
	idleLimit = 500 * time.Millisecond
	// pollInterval is the interval at which Settle reads the sockets; each read
	// makes the kernel walk all sockets of the machine.
	pollInterval = 100 * time.Millisecond
)

// Options configure a Lab.
type Options struct {
	// Program is the path of the deploy/demo/service binary.
	Program string
	// OTLPPort is the port of a receiver on the machine, at [Lab.Host]. It need
	// not listen yet.
	OTLPPort uint16
	// Output receives the services' output, except their answers to commands.
	// Nil discards it.
	Output io.Writer
}

// Lab is a running shop. Its methods belong to one goroutine at a time.
type Lab struct {
	subnet   byte
	hub      *process
	services map[string]*process
	filtered map[string]bool // services with a filter on incoming packets
}

// process is a program in its own network namespace.
type process struct {
	name    string
	cmd     *exec.Cmd
	address netip.Addr
	stdin   io.WriteCloser
	answers *bufio.Scanner
}

// Start creates the network and starts the shop. ctx bounds only the start.
func Start(ctx context.Context, o Options) (_ *Lab, err error) {
	if missing := namespaces.Missing(); missing != "" {
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

// Host returns the machine's address as seen by the services.
func (l *Lab) Host() netip.Addr { return l.address(1) }

func (l *Lab) address(host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, l.subnet, host}) }

// Namespaces returns the number of namespaces, including the bridge's.
func (l *Lab) Namespaces() int { return len(l.services) + 1 }

// freeSubnet returns a third byte of 10.77.x.0/24 that no interface of the
// machine uses, so that two labs can run at once.
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
	return 0, errors.New("no free network in 10.77.0.0/16")
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

// launch starts a program in its own network namespace.
func launch(name string, output io.Writer, program string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(program, args...)} //nolint:gosec // the caller chooses the program
	namespaces.Isolate(p.cmd)
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

// connect creates a veth pair from each service, and from the machine, to the
// bridge.
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
	if err := namespaces.Feed(cables.String(), "ip", "-batch", "-"); err != nil {
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

// inside runs a program in the namespace of p.
func (p *process) inside(input, program string, args ...string) error {
	return namespaces.Enter(p.cmd.Process.Pid, func() error { return namespaces.Feed(input, program, args...) })
}

func (l *Lab) awaitReady(ctx context.Context) error {
	// Kill a service that is not ready in time, which ends the wait for it.
	defer context.AfterFunc(ctx, func() {
		for _, p := range l.services {
			_ = p.cmd.Process.Kill()
		}
	})()
	for name, p := range l.services {
		if answer, err := p.answer(); err != nil || answer != "ready" {
			return errors.Join(fmt.Errorf("start %s: answered %q: %w", name, answer, err), ctx.Err())
		}
	}
	return nil
}

// answer reads one line of output.
func (p *process) answer() (string, error) {
	if !p.answers.Scan() {
		return "", errors.Join(io.ErrUnexpectedEOF, p.answers.Err())
	}
	return p.answers.Text(), nil
}

// command sends a command of deploy/demo/service and returns the answer.
func (l *Lab) command(service, command string) (string, error) {
	p := l.services[service]
	if p == nil {
		return "", fmt.Errorf("send command to %s: no such service", service)
	}
	if _, err := io.WriteString(p.stdin, command+"\n"); err != nil {
		return "", fmt.Errorf("send command to %s: %w", service, err)
	}
	answer, err := p.answer()
	if err != nil || strings.HasPrefix(answer, "error: ") {
		return "", fmt.Errorf("send command to %s: %s: answered %q: %w", service, command, answer, err)
	}
	return answer, nil
}

// Command sends a service a command that deploy/demo/service knows, such as
// "slow 300ms".
func (l *Lab) Command(service, command string) error {
	_, err := l.command(service, command)
	return err
}

// Visit makes the given number of journeys, at most concurrency at once, and
// returns how many of them saw errors.
func (l *Lab) Visit(journeys, concurrency int) (failed int, err error) {
	answer, err := l.command("loadgenerator", fmt.Sprintf("visit %d %d", journeys, concurrency))
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(answer, "%d visitors, %d saw errors", &journeys, &failed); err != nil {
		return 0, fmt.Errorf("read %q: %w", answer, err)
	}
	return failed, nil
}

// Freeze suspends a service; its sockets stay open. Thaw resumes it.
func (l *Lab) Freeze(service string) error {
	return l.services[service].cmd.Process.Signal(syscall.SIGSTOP)
}

// Thaw resumes a service after Freeze.
func (l *Lab) Thaw(service string) error {
	return l.services[service].cmd.Process.Signal(syscall.SIGCONT)
}

// Lose drops one in so many packets between two services, in both directions.
// It counts packets, so that even a short visit surely loses some.
func (l *Lab) Lose(a, b string, packets int) error {
	return l.filter(fmt.Sprintf("numgen inc mod %d == %d drop", packets, packets-1), [2]string{a, b}, [2]string{b, a})
}

// Block drops the packets that open connections from one service to another.
func (l *Lab) Block(from, to string) error {
	return l.filter("tcp flags & (syn | ack) == syn drop", [2]string{from, to})
}

// Reset answers one in so many packets from one service to another with a
// reset, as a peer does that does not know the connection.
func (l *Lab) Reset(from, to string, packets int) error {
	return l.filter(fmt.Sprintf("tcp flags & (syn | fin | rst) == 0 numgen inc mod %d == %d reject with tcp reset", packets, packets-1), [2]string{from, to})
}

// Heal removes all filters.
func (l *Lab) Heal() error { return l.filter("") }

// filter replaces the filters by a rule for TCP packets between the given
// services. It applies at the receiving end, because a bridge cannot send
// resets.
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
			return fmt.Errorf("filter %s to %s: no such service", way[0], way[1])
		}
		l.filtered[way[1]] = true
		script := fmt.Sprintf("table ip lab {\nchain arriving {\ntype filter hook input priority 0;\nip saddr %s meta l4proto tcp %s\n}\n}\n", from.address, rule)
		if err := to.inside(script, "nft", "-f", "-"); err != nil {
			return err
		}
	}
	return nil
}

// Settle waits until no service has a connection to another; services close
// idle connections soon after the last call. It ignores connections that only
// one end knows, as after a reset.
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
			return fmt.Errorf("wait until connections are closed: %w: %v", ctx.Err(), open)
		case <-tick.C:
		}
	}
}

// ends are the two ends of a connection, as one of them sees it.
type ends struct{ local, peer netip.AddrPort }

// connections returns the connections between services that both ends know.
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

// stateTimeWait is the kernel's number for TIME_WAIT.
const stateTimeWait = 6

// parseSocket parses a line of /proc/net/tcp of a little-endian machine.
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

// Close stops the shop, then the network. Spans that were not delivered are
// lost.
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

// serial serializes the writes of several processes.
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

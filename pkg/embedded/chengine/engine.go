package chengine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Engine is a running server, from Start to Stop.
type Engine struct {
	cmd      *exec.Cmd
	stdin    io.Closer
	at       ports
	server   bool // a full server, which ends by a signal and not with its input
	output   *output
	stopping atomic.Bool
	done     chan struct{}
	err      error // set before done is closed
}

// Start runs an engine on o.DataDir and returns when it responds to queries. ctx bounds
// only the start: the engine runs until Stop or the end of this process. If another
// program takes a port chosen for 0 in the meantime, Start chooses a new one.
func Start(ctx context.Context, o Options) (*Engine, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("engine options: %w", err)
	}
	p, err := locate(o.Library)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		e, err := startOnce(ctx, p, o)
		if err == nil {
			return e, nil
		}
		const attempts = 5
		free := o.NativePort == 0 || o.HTTPPort == 0
		if !free || attempt == attempts || !strings.Contains(err.Error(), "Address already in use") {
			return nil, fmt.Errorf("start clickhouse engine: %w", err)
		}
	}
}

func startOnce(ctx context.Context, p program, o Options) (*Engine, error) {
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the child's copy keeps the lock
	at, err := choosePorts(o)
	if err != nil {
		return nil, err
	}
	name := "metaflow-" + rand.Text()
	cmd, err := command(p, o, dir, name, at)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cmd:    cmd,
		at:     at,
		server: p.binary != "",
		output: &output{log: o.Logger, name: o.LogFile},
		done:   make(chan struct{}),
	}
	cmd.ExtraFiles = []*os.File{lock}
	cmd.Stderr = e.output
	cmd.SysProcAttr = childAttributes()
	cmd.WaitDelay = time.Second // a grandchild that kept the pipe must not delay the end
	if e.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := e.output.open(); err != nil {
		return nil, err
	}
	started := make(chan error)
	go e.supervise(started)
	if err := <-started; err != nil {
		return nil, err
	}
	if err := e.waitReady(ctx, name); err != nil {
		e.stopping.Store(true)
		e.kill()
		<-e.done
		return nil, err
	}
	return e, nil
}

// supervise starts the child and waits for it on one locked OS thread: the kernel kills
// the child when the thread that started it ends, and the runtime may end any unlocked
// thread.
func (e *Engine) supervise(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := e.cmd.Start()
	if err == nil {
		defer close(e.done)
	}
	started <- err
	if err != nil {
		e.output.flush()
		return
	}
	err = e.cmd.Wait()
	e.output.flush()
	if !e.stopping.Load() {
		e.err = e.death(err)
	}
}

func (e *Engine) death(wait error) error {
	cause := "exit status 0"
	if wait != nil {
		cause = wait.Error()
	}
	if last := e.output.cause(); last != "" {
		cause += ": " + last
	}
	if e.output.name != "" {
		cause += " (its log is " + e.output.name + ")"
	}
	return fmt.Errorf("%w: %s", errEnded, cause)
}

// errEnded means that the child ended without being asked to.
var errEnded = errors.New("clickhouse engine ended")

// waitReady queries the server's name until the child responds. Another program may be
// listening on the port that the child fails to bind.
func (e *Engine) waitReady(ctx context.Context, name string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	const interval = 20 * time.Millisecond // a start takes about 300 ms
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if e.askName(ctx, client) == name {
			return nil // both ports are bound before either responds
		}
		select {
		case <-e.done:
			return e.err
		case <-ctx.Done():
			return fmt.Errorf("wait for its first response: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// askName returns the display name of the server on the HTTP port, or "" if there is
// none.
func (e *Engine) askName(ctx context.Context, client *http.Client) string {
	const query = "/?query=SELECT%20displayName()"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.HTTPAddr()+query, nil)
	if err != nil {
		return ""
	}
	resp, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	const longest = 256 // more than any name of ours
	body, err := io.ReadAll(io.LimitReader(resp.Body, longest))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(body))
}

// NativeAddr returns the host:port of the native protocol.
func (e *Engine) NativeAddr() string { return addr(e.at.native) }

// HTTPAddr returns the host:port of the HTTP protocol.
func (e *Engine) HTTPAddr() string { return addr(e.at.http) }

// PID returns the child's process id, for measuring its CPU and memory.
func (e *Engine) PID() int { return e.cmd.Process.Pid }

// Done is closed when the child has ended for any reason.
func (e *Engine) Done() <-chan struct{} { return e.done }

// Err returns why the child ended unexpectedly. It is nil while the child runs and after
// Stop.
func (e *Engine) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}

// Stop lets the engine finish its queries and end, and returns when it has. If ctx ends
// first, Stop kills the child, which loses no stored data, and returns an error. A second
// Stop, or one after an unexpected end, returns nil.
func (e *Engine) Stop(ctx context.Context) error {
	e.stopping.Store(true)
	_ = e.stdin.Close() // it may be closed already
	if e.server {
		_ = e.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		e.kill()
		<-e.done
		return fmt.Errorf("stop clickhouse engine: killed: %w", ctx.Err())
	}
}

func (e *Engine) kill() {
	_ = e.cmd.Process.Kill() // it may have ended already
}

func addr(port int) string { return net.JoinHostPort(listenHost, strconv.Itoa(port)) }

// choosePorts replaces zeros by currently free ports and checks the others. It holds both at once, so that they
// differ.
func choosePorts(o Options) (ports, error) {
	at := ports{native: o.NativePort, http: o.HTTPPort}
	for _, port := range []*int{&at.native, &at.http} {
		if *port != 0 { // the engine's own words for a port in use are two stack traces
			l, err := net.Listen("tcp", addr(*port))
			if errors.Is(err, syscall.EADDRINUSE) {
				return ports{}, fmt.Errorf("another program uses the port %s: %w", addr(*port), err)
			}
			if err == nil {
				err = l.Close()
			}
			if err != nil {
				return ports{}, err
			}
			continue
		}
		l, err := net.Listen("tcp", addr(0))
		if err != nil {
			return ports{}, fmt.Errorf("choose a port: %w", err)
		}
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener has no other
	}
	return at, nil
}

// Package process runs programs for the demos: a MetaFlow server, an agent, whatever sends to them. A program
// lives at most as long as the one that started it, and what it said last explains its death.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	// startLimit is for a cold disk and a busy machine, on which six JVMs start at once.
	startLimit = 5 * time.Minute
	readyPoll  = 50 * time.Millisecond
	// stopLimit is more than the server's own grace period of 30 s.
	stopLimit = 40 * time.Second
	// terminated is the exit status of a JVM that SIGTERM has ended in good order.
	terminated = 128 + int(syscall.SIGTERM)
)

// Process is a running program. Make it with [Start]. Its methods may be called by several goroutines.
type Process struct {
	Name string // for people
	cmd  *exec.Cmd
	said *tail
	done chan struct{}
	end  error // of the process, once done is closed
}

// Start runs a program. An env of nil is that of this process.
func Start(name string, env []string, program string, args ...string) (*Process, error) {
	cmd := exec.Command(program, args...) //nolint:gosec // the user names it
	p := &Process{Name: name, cmd: cmd, said: &tail{}, done: make(chan struct{})}
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = p.said, p.said
	cmd.SysProcAttr = attributes()
	// What holds the output open after the program has ended is not waited for.
	cmd.WaitDelay = time.Second

	started := make(chan error)
	go p.supervise(started)
	err := <-started
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("start %s: there is no %s (`make build` makes it)", name, program)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// supervise stays on one thread: the kernel signals the program when the thread that started it ends.
func (p *Process) supervise(started chan<- error) {
	runtime.LockOSThread()
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.end = p.cmd.Wait()
	}
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Said returns the last that the program printed.
func (p *Process) Said() string { return p.said.String() }

// Death describes the end of a program that should live. It is to be called when Done is closed.
func (p *Process) Death() error {
	return fmt.Errorf("%s ended too early (%v); the last it said:\n%s", p.Name, p.cmd.ProcessState, p.said)
}

// Await polls until check is satisfied. An error of check ends the wait, and so does the program's death.
func (p *Process) Await(ctx context.Context, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("%s was not ready after %v", p.Name, startLimit))
	defer cancel()
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for {
		if ready, err := check(); ready || err != nil {
			return err
		}
		select {
		case <-poll.C:
		case <-p.done:
			return p.Death()
		case <-ctx.Done():
			return fmt.Errorf("%w; the last it said:\n%s", context.Cause(ctx), p.said)
		}
	}
}

// Stop asks the program to end and waits until it has. Whoever already ended is not asked.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	// Fails only for a process that has ended just now.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not stop within %v of SIGTERM and was killed; the last it said:\n%s", p.Name, stopLimit, p.said)
	}
	if p.end != nil && p.cmd.ProcessState.ExitCode() != terminated {
		return fmt.Errorf("%s did not stop cleanly (%w); the last it said:\n%s", p.Name, p.end, p.said)
	}
	return nil
}

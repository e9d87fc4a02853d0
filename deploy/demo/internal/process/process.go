// Package process runs programs for the demos: a MetaFlow server, an agent, and
// the senders. A program ends at the latest with the process that started it.
// If it dies early, the error contains its last output.
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
	// startLimit allows for a cold disk and a busy machine that starts six JVMs
	// at once.
	startLimit = 5 * time.Minute
	readyPoll  = 50 * time.Millisecond
	// stopLimit exceeds the server's own grace period of 30 s.
	stopLimit = 40 * time.Second
	// terminated is the exit status of a JVM that ended in order after SIGTERM.
	terminated = 128 + int(syscall.SIGTERM)
)

// Process is a running program. Use [Start]. Its methods are safe for
// concurrent use.
type Process struct {
	Name   string // used in messages
	cmd    *exec.Cmd
	output *tail
	done   chan struct{}
	end    error // exit error; set before done is closed
}

// Start runs a program. If env is nil, the program has the environment of this
// process.
func Start(name string, env []string, program string, args ...string) (*Process, error) {
	cmd := exec.Command(program, args...) //nolint:gosec // the user names it
	p := &Process{Name: name, cmd: cmd, output: &tail{}, done: make(chan struct{})}
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.SysProcAttr = attributes()
	// Do not wait for descendants that keep the output open.
	cmd.WaitDelay = time.Second

	started := make(chan error)
	go p.supervise(started)
	err := <-started
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("start %s: %s not found (run `make build`)", name, program)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// supervise stays on one thread: the kernel signals the program when the thread
// that started it ends.
func (p *Process) supervise(started chan<- error) {
	runtime.LockOSThread()
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.end = p.cmd.Wait()
	}
}

// Done returns a channel that is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// LastOutput returns the last lines that the program printed.
func (p *Process) LastOutput() string { return p.output.String() }

// EarlyExit returns the error for a program that should still run. Call it
// after Done is closed.
func (p *Process) EarlyExit() error {
	return fmt.Errorf("%s ended too early (%v); its last output:\n%s", p.Name, p.cmd.ProcessState, p.output)
}

// Await polls check until it returns true. It fails if check fails, the program
// ends, ctx ends, or startLimit passes.
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
			return p.EarlyExit()
		case <-ctx.Done():
			return fmt.Errorf("%w; its last output:\n%s", context.Cause(ctx), p.output)
		}
	}
}

// Stop sends SIGTERM unless the program has ended, waits for its end, and kills
// it after stopLimit.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	// It fails only if the process has just ended.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not stop within %v of SIGTERM and was killed; its last output:\n%s", p.Name, stopLimit, p.output)
	}
	if p.end != nil && p.cmd.ProcessState.ExitCode() != terminated {
		return fmt.Errorf("%s did not stop cleanly (%w); its last output:\n%s", p.Name, p.end, p.output)
	}
	return nil
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// readyTimeout is for a cold disk and a busy machine: five JVMs start at once.
	readyTimeout = 5 * time.Minute
	readyPoll    = 100 * time.Millisecond
	// stopTimeout is more than the server's own grace period of 30 s.
	stopTimeout = 40 * time.Second
	// tailBytes is what is kept of a program's output.
	tailBytes = 8 << 10
	// terminated is the exit status of a JVM that SIGTERM has ended in good order.
	terminated = 128 + int(syscall.SIGTERM)
)

// child is a program in a process of its own. One goroutine waits for its end.
type child struct {
	name   string // for people
	cmd    *exec.Cmd
	output *tail
	done   chan struct{}
	end    error // of the process, once done is closed
}

// startChild runs a program. An env of nil is our own.
func startChild(name string, env []string, program string, args ...string) (*child, error) {
	cmd := exec.Command(program, args...) //nolint:gosec // the user names it
	c := &child{name: name, cmd: cmd, output: &tail{}, done: make(chan struct{})}
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = c.output, c.output
	cmd.SysProcAttr = childAttributes()
	// What holds the output open after the program has ended is not waited for.
	cmd.WaitDelay = time.Second

	started := make(chan error)
	go c.supervise(started)
	err := <-started
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("start %s: there is no %s (`make build` makes it)", name, program)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// supervise stays on one thread: the kernel signals the child when the thread
// that started it ends.
func (c *child) supervise(started chan<- error) {
	runtime.LockOSThread()
	defer close(c.done)
	err := c.cmd.Start()
	started <- err
	if err == nil {
		c.end = c.cmd.Wait()
	}
}

// death describes the end of a program that should live.
func (c *child) death() error {
	return fmt.Errorf("%s ended too early (%v); the last it said:\n%s", c.name, c.cmd.ProcessState, c.output)
}

// await polls until check is satisfied. An error of check ends the wait.
func (c *child) await(ctx context.Context, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("%s was not ready after %v", c.name, readyTimeout))
	defer cancel()
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for {
		if ready, err := check(); ready || err != nil {
			return err
		}
		select {
		case <-poll.C:
		case <-c.done:
			return c.death()
		case <-ctx.Done():
			return fmt.Errorf("%w; the last it said:\n%s", context.Cause(ctx), c.output)
		}
	}
}

// stop asks the program to end and waits until it has. Whoever already ended is
// not asked.
func (c *child) stop() error {
	select {
	case <-c.done:
		return nil
	default:
	}
	// Fails only for a process that has ended just now.
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(stopTimeout):
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("%s did not stop within %v of SIGTERM and was killed; the last it said:\n%s", c.name, stopTimeout, c.output)
	}
	if c.end != nil && c.cmd.ProcessState.ExitCode() != terminated {
		return fmt.Errorf("%s did not stop cleanly (%w); the last it said:\n%s", c.name, c.end, c.output)
	}
	return nil
}

// tail is a writer that keeps the end.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = bytes.Clone(t.text[max(0, len(t.text)-tailBytes):])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimRight(string(t.text), "\n")
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

const (
	// readyTimeout is for a cold disk and a busy machine; a start takes less than 5 s.
	readyTimeout = time.Minute
	readyPoll    = 50 * time.Millisecond
	// stopTimeout is more than the server's own grace period of 30 s.
	stopTimeout = 40 * time.Second
)

// endpoints is what the server writes into its ready file.
type endpoints struct {
	GRPC             string `json:"grpc"`
	HTTP             string `json:"http"`
	Kafka            string `json:"kafka"`
	ClickHouseNative string `json:"clickhouse_native"`
	ClickHouseHTTP   string `json:"clickhouse_http"`
}

// child is a program in a process of its own. One goroutine waits for its end.
type child struct {
	name   string // for people
	cmd    *exec.Cmd
	output *tail
	done   chan struct{}
	end    error // of the process, once done is closed
}

// startChild runs a program.
func startChild(name, program string, args ...string) (*child, error) {
	cmd := exec.Command(program, args...) //nolint:gosec // the user names it
	c := &child{name: name, cmd: cmd, output: &tail{}, done: make(chan struct{})}
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
	return fmt.Errorf("%s ended too early (%s); the last it said:\n%s", c.name, c.status(), c.output)
}

func (c *child) status() string {
	if c.end == nil {
		return "exit status 0"
	}
	return c.end.Error()
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
	if c.end != nil {
		return fmt.Errorf("%s did not stop cleanly (%s); the last it said:\n%s", c.name, c.status(), c.output)
	}
	return nil
}

// server is a MetaFlow server in standalone mode.
type server struct {
	*child
	ready string // the file that tells where it listens
}

// startServer runs the program on free ports, with its data in dir.
func startServer(program, dir string) (*server, error) {
	ready := filepath.Join(dir, "ready.json")
	c, err := startChild("the server", program, "standalone",
		"--data-dir", filepath.Join(dir, "data"),
		"--grpc-listen", "127.0.0.1:0",
		"--http-listen", "127.0.0.1:0",
		"--kafka-listen", "127.0.0.1:0",
		"--clickhouse-native-port", "0",
		"--clickhouse-http-port", "0",
		"--ready-file", ready,
	)
	return &server{c, ready}, err
}

// awaitReady returns where the server listens once it does.
func (s *server) awaitReady(ctx context.Context) (at endpoints, err error) {
	err = s.await(ctx, func() (bool, error) {
		at, err = readEndpoints(s.ready)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return true, err
	})
	return at, err
}

func readEndpoints(path string) (e endpoints, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(content, &e); err != nil {
		return e, fmt.Errorf("read the server's ready file: %w", err)
	}
	if e.GRPC == "" || e.ClickHouseNative == "" {
		return e, fmt.Errorf("read the server's ready file: %s names no grpc or no clickhouse_native address", content)
	}
	return e, nil
}

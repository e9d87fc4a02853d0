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

// server is a MetaFlow server in a child process. One goroutine waits for its end.
type server struct {
	cmd    *exec.Cmd
	ready  string // the file that tells where it listens
	output *tail
	done   chan struct{}
	end    error // of the process, once done is closed
}

// startServer runs the program in standalone mode on free ports, with its data
// in dir.
func startServer(program, dir string) (*server, error) {
	ready := filepath.Join(dir, "ready.json")
	cmd := exec.Command(program, "standalone", //nolint:gosec // the user names it
		"--data-dir", filepath.Join(dir, "data"),
		"--grpc-listen", "127.0.0.1:0",
		"--http-listen", "127.0.0.1:0",
		"--kafka-listen", "127.0.0.1:0",
		"--clickhouse-native-port", "0",
		"--clickhouse-http-port", "0",
		"--ready-file", ready,
	)
	s := &server{cmd: cmd, ready: ready, output: &tail{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = s.output, s.output
	cmd.SysProcAttr = childAttributes()
	// What holds the output open after the server has ended is not waited for.
	cmd.WaitDelay = time.Second

	started := make(chan error)
	go s.supervise(started)
	err := <-started
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("start server: there is no %s (`make build` makes it)", program)
	}
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	return s, nil
}

// supervise stays on one thread: the kernel signals the child when the thread
// that started it ends.
func (s *server) supervise(started chan<- error) {
	runtime.LockOSThread()
	defer close(s.done)
	err := s.cmd.Start()
	started <- err
	if err == nil {
		s.end = s.cmd.Wait()
	}
}

// death describes the end of a server that should live.
func (s *server) death() error {
	return fmt.Errorf("the server ended too early (%s); the last it said:\n%s", s.status(), s.output)
}

func (s *server) status() string {
	if s.end == nil {
		return "exit status 0"
	}
	return s.end.Error()
}

// awaitReady returns where the server listens once it does.
func (s *server) awaitReady(ctx context.Context) (endpoints, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout,
		fmt.Errorf("the server was not ready after %v", readyTimeout))
	defer cancel()
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for {
		e, err := readEndpoints(s.ready)
		if !errors.Is(err, fs.ErrNotExist) {
			return e, err
		}
		select {
		case <-poll.C:
		case <-s.done:
			return endpoints{}, s.death()
		case <-ctx.Done():
			return endpoints{}, fmt.Errorf("%w; the last it said:\n%s", context.Cause(ctx), s.output)
		}
	}
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

// stop asks the server to end and waits until it has. Whoever already ended is
// not asked.
func (s *server) stop() error {
	select {
	case <-s.done:
		return nil
	default:
	}
	// Fails only for a process that has ended just now.
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("the server did not stop within %v of SIGTERM and was killed; the last it said:\n%s", stopTimeout, s.output)
	}
	if s.end != nil {
		return fmt.Errorf("the server did not stop cleanly (%s); the last it said:\n%s", s.status(), s.output)
	}
	return nil
}

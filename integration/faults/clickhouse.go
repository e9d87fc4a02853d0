package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// store is ClickHouse, and a connection to it on which no fault is put.
type store struct {
	addr  string
	conn  driver.Conn
	event func(format string, args ...any)

	mu     sync.Mutex
	opts   chengine.Options
	engine *chengine.Engine
	wanted bool
	ended  int // by itself
}

// startStore starts ClickHouse on dir.
func startStore(ctx context.Context, dir string, log io.Writer, event func(string, ...any)) (*store, error) {
	s := &store{event: event, opts: chengine.Options{
		DataDir: dir, MaxMemoryBytes: normalMemory,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	s.addr = s.engine.NativeAddr()
	var err error
	s.conn, err = clickhouse.Open(&clickhouse.Options{
		Addr: []string{s.addr}, DialTimeout: 5 * time.Second, ReadTimeout: time.Minute, MaxOpenConns: 8,
	})
	return s, err
}

// normalMemory is the limit of ClickHouse where no fault lowers it.
const normalMemory = 3 << 30

// start starts the engine, unless it runs, and returns when it answers.
func (s *store) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = true
	if s.engine != nil {
		return nil
	}
	e, err := chengine.StartPersistently(ctx, s.opts)
	if err != nil {
		return err
	}
	s.engine = e
	_, native, _ := net.SplitHostPort(e.NativeAddr())
	_, http, _ := net.SplitHostPort(e.HTTPAddr())
	s.opts.NativePort, _ = strconv.Atoi(native)
	s.opts.HTTPPort, _ = strconv.Atoi(http)
	go s.watch(e) //nolint:gosec // it outlives the start that ctx bounds
	return nil
}

// watch starts the engine again where it has ended by itself.
func (s *store) watch(e *chengine.Engine) {
	<-e.Done()
	s.mu.Lock()
	s.engine = nil
	wanted := s.wanted
	if wanted {
		s.ended++
		s.event("ClickHouse ended by itself: %v", e.Err())
	}
	s.mu.Unlock()
	for wanted {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err := s.startWanted(ctx)
		cancel()
		if err == nil {
			return
		}
		s.event("%v", err)
	}
}

func (s *store) startWanted(ctx context.Context) error {
	s.mu.Lock()
	wanted := s.wanted
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	return s.start(ctx)
}

// kill ends the engine like kill -9; it stays down until start.
func (s *store) kill() {
	s.mu.Lock()
	s.wanted = false
	e := s.engine
	s.mu.Unlock()
	if e != nil {
		_ = syscall.Kill(e.PID(), syscall.SIGKILL)
		<-e.Done()
		s.gone()
	}
}

// stop ends the engine in order; it stays down until start.
func (s *store) stop() {
	s.mu.Lock()
	s.wanted = false
	e := s.engine
	s.mu.Unlock()
	if e != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = e.Stop(ctx)
		s.gone()
	}
}

// gone waits until watch has noticed that the engine has ended.
func (s *store) gone() {
	for {
		s.mu.Lock()
		e := s.engine
		s.mu.Unlock()
		if e == nil {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// limit restarts the engine with another limit of its memory.
func (s *store) limit(ctx context.Context, bytes int64) error {
	s.kill()
	s.mu.Lock()
	s.opts.MaxMemoryBytes = bytes
	s.mu.Unlock()
	return s.start(ctx)
}

func (s *store) pause()  { s.signal(syscall.SIGSTOP) }
func (s *store) resume() { s.signal(syscall.SIGCONT) }

func (s *store) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine != nil {
		_ = syscall.Kill(s.engine.PID(), sig)
	}
}

// exec executes statements, each again until it succeeds: another fault may have
// ClickHouse at the same time.
func (s *store) exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		err := retried(ctx, func(ctx context.Context) error { return s.conn.Exec(ctx, sql) })
		if err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// retried calls f until it succeeds or ctx ends, and returns f's last error.
func retried(ctx context.Context, f func(context.Context) error) error {
	for {
		call, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := f(call)
		cancel()
		if err == nil {
			return nil
		}
		if retry.Sleep(ctx, 300*time.Millisecond) != nil {
			return err
		}
	}
}

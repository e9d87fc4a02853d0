package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// startup is what a role does until it can work, for /ready: the operation that it
// repeats until it succeeds, and whether all of them have.
type startup struct {
	*core

	mu     sync.Mutex
	failed error // of the operation in progress
	done   bool
}

var errStarting = errors.New("not started yet")

// ready returns nil once the role has started, or else what it waits for.
func (s *startup) ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.done:
		return nil
	case s.failed != nil:
		return fmt.Errorf("%w: %w", errStarting, s.failed)
	default:
		return errStarting
	}
}

func (s *startup) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
}

func (s *startup) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

// ensureTopics creates the missing topics. It waits for Kafka.
func (s *startup) ensureTopics(ctx context.Context, names ...string) error {
	topics := s.topicsNamed(names...)
	return s.retry(ctx, "create topics", func(ctx context.Context) error { return s.kafka.EnsureTopics(ctx, topics...) })
}

// retry calls f until it succeeds or ctx ends, and logs each failure.
func (s *startup) retry(ctx context.Context, what string, f func(context.Context) error) error {
	err := retry.Do(ctx, retry.Policy{First: 2 * time.Second, Max: 2 * time.Second}, f, func(failure retry.Failure) {
		s.note(fmt.Errorf("%s: %w", what, failure.Err))
		s.log.Warn("operation failed, retrying", slog.String("operation", what), slog.Any("error", failure.Err), slog.Duration("after", failure.Pause))
	})
	s.note(err)
	return err
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// link is what is known about the way to the servers. It logs when the way is
// lost and found, and answers for it on /ready. Its methods are safe for
// concurrent use.
type link struct {
	log *slog.Logger

	mu      sync.Mutex
	reached bool      // a server has answered since the start of the program
	up      bool      // a server answers now
	cause   error     // why none does, nil while unknown
	since   time.Time // of the last change of up
	group   error     // the servers do not know the agent's group
}

func newLink(log *slog.Logger) *link { return &link{log: log, since: time.Now()} }

// answered records that a server answered on the control stream. groupErr is set
// if it does not know the agent's group.
func (l *link) answered(ctx context.Context, groupErr error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		attrs := []any{}
		if l.cause != nil {
			attrs = append(attrs, slog.Duration("after", time.Since(l.since).Round(time.Millisecond)))
		}
		l.log.InfoContext(ctx, "connected to a server", attrs...)
		l.since = time.Now()
	}
	l.up, l.reached, l.cause = true, true, nil
	if groupErr != nil {
		l.log.WarnContext(ctx, "the servers have no configuration for this agent", slog.Any("error", groupErr))
	}
	l.group = groupErr
}

// lost records that no server answers, and why.
func (l *link) lost(ctx context.Context, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up {
		l.since = time.Now()
	}
	l.up, l.cause = false, cause
	l.log.WarnContext(ctx, "no server takes this agent", slog.Duration("for", time.Since(l.since).Round(time.Second)), slog.Any("error", cause))
}

// ended records the planned end of a stream: the next one follows at once.
func (l *link) ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up {
		l.since = time.Now()
	}
	l.up = false
}

// check is nil if a server has answered since the start.
func (l *link) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.reached:
		return nil
	case l.cause != nil:
		return fmt.Errorf("no server has been reached since the start: %w", l.cause)
	default:
		return errors.New("no server has been reached since the start: connecting")
	}
}

// checkGroup is nil unless the servers do not know the agent's group.
func (l *link) checkGroup() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.group
}

// notice says for how long and why no server answers, empty if one does or none
// ever has.
func (l *link) notice() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reached || l.up || l.cause == nil {
		return ""
	}
	return fmt.Sprintf("no server answers since %s: %v", l.since.UTC().Format(time.RFC3339), l.cause)
}

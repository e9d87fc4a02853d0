package program

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// repeatInterval is how often a warning that repeats is written: often
	// enough to see that it lasts, rarely enough to find other lines.
	repeatInterval = 5 * time.Minute
	// maxRepeating bounds the memory for warnings that may repeat.
	maxRepeating = 1000
)

// counted writes a warning or error that repeats at most once in repeatInterval,
// with the number of those it left out as the attribute "repeated". Two are the
// same if they differ only in numbers, durations and times, except partitions and
// ports. Other records pass unchanged.
type counted struct {
	slog.Handler
	bound   string // attributes and groups of the logger, part of what identifies a warning
	repeats *repeats
}

func newCounted(next slog.Handler) *counted {
	return &counted{Handler: next, repeats: &repeats{seen: map[string]*repeat{}, now: time.Now}}
}

// repeats is shared by all loggers of a program.
type repeats struct {
	now func() time.Time

	mu   sync.Mutex
	seen map[string]*repeat
}

type repeat struct {
	written time.Time
	left    int // left out since then
}

// take returns whether to write the record of a key now, and how many were left
// out before it.
func (r *repeats) take(key string) (write bool, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if last := r.seen[key]; last != nil {
		if now.Sub(last.written) < repeatInterval {
			last.left++
			return false, 0
		}
		left = last.left
		*last = repeat{written: now}
		return true, left
	}
	if len(r.seen) >= maxRepeating {
		clear(r.seen)
	}
	r.seen[key] = &repeat{written: now}
	return true, 0
}

// Handle implements slog.Handler.
func (c *counted) Handle(ctx context.Context, record slog.Record) error {
	if record.Level < slog.LevelWarn {
		return c.Handler.Handle(ctx, record)
	}
	var key strings.Builder
	key.WriteString(c.bound)
	key.WriteString(record.Message)
	record.Attrs(func(a slog.Attr) bool { identify(&key, a); return true })
	write, left := c.repeats.take(key.String())
	if !write {
		return nil
	}
	if left > 0 {
		record = record.Clone()
		record.AddAttrs(slog.Int("repeated", left))
	}
	return c.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (c *counted) WithAttrs(attrs []slog.Attr) slog.Handler {
	var key strings.Builder
	key.WriteString(c.bound)
	for _, a := range attrs {
		identify(&key, a)
	}
	return &counted{Handler: c.Handler.WithAttrs(attrs), bound: key.String(), repeats: c.repeats}
}

// WithGroup implements slog.Handler.
func (c *counted) WithGroup(name string) slog.Handler {
	return &counted{Handler: c.Handler.WithGroup(name), bound: c.bound + name + "\x00", repeats: c.repeats}
}

// identify appends what distinguishes an attribute: its key, and its value
// without numbers unless they name something.
func identify(key *strings.Builder, a slog.Attr) {
	key.WriteByte(0)
	key.WriteString(a.Key)
	key.WriteByte('=')
	v := a.Value.Resolve()
	if a.Key == "partition" || a.Key == "port" {
		key.WriteString(v.String())
		return
	}
	switch v.Kind() {
	case slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindDuration, slog.KindTime:
	default:
		for _, r := range v.String() {
			if r < '0' || r > '9' {
				key.WriteRune(r)
			}
		}
	}
}

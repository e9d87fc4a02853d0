package process

import (
	"bytes"
	"strings"
	"sync"
)

const (
	tailLines = 15
	// tailLine bounds the bytes kept of one line.
	tailLine = 2000
)

// tail is an io.Writer that keeps the last lines.
type tail struct {
	mu    sync.Mutex
	lines []string
	open  []byte // the unfinished line
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		t.open = append(t.open, line[:min(len(line), tailLine-len(t.open))]...)
		if ended {
			t.lines = append(t.lines[max(0, len(t.lines)-tailLines+1):], string(t.open))
			t.open = t.open[:0]
		}
		rest = after
	}
	return len(p), nil
}

// String returns the lines, each indented, including the unfinished one.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := t.lines
	if len(t.open) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(t.open))
	}
	if len(lines) == 0 {
		return "  (no output)"
	}
	return "  " + strings.Join(lines, "\n  ")
}

package process

import (
	"bytes"
	"strings"
	"sync"
)

const (
	tailLines = 15
	// tailLine bounds what is kept of one line, in bytes.
	tailLine = 2000
)

// tail is a writer that keeps the last lines.
type tail struct {
	mu    sync.Mutex
	lines []string
	open  []byte // the line that has not ended yet
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

// String returns the lines, each indented, with one that has not ended.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := t.lines
	if len(t.open) > 0 {
		lines = append(lines[:len(lines):len(lines)], string(t.open))
	}
	if len(lines) == 0 {
		return "  (it printed nothing)"
	}
	return "  " + strings.Join(lines, "\n  ")
}

package chengine

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// tailBytes is how much of the child's last output goes into an error: a ClickHouse
// exception without its stack.
const tailBytes = 2 << 10

// output splits the child's standard error into log lines and keeps its end.
type output struct {
	log *slog.Logger

	mu   sync.Mutex
	line []byte // incomplete line
	last []byte // at most tailBytes
}

// Write never fails: the child must not block on its log.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = append(o.last, p...)
	o.last = o.last[max(0, len(o.last)-tailBytes):]
	o.line = append(o.line, p...)
	for {
		line, rest, ok := bytes.Cut(o.line, []byte("\n"))
		if !ok {
			break
		}
		o.emit(line)
		o.line = rest
	}
	const longest = 64 << 10 // bounds the memory of a line without an end
	if len(o.line) > longest {
		o.emit(o.line)
		o.line = nil
	}
	return len(p), nil
}

func (o *output) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.emit(o.line)
	o.line = nil
}

func (o *output) emit(line []byte) {
	if text := strings.TrimSpace(string(line)); text != "" {
		o.log.Warn("clickhouse engine", slog.String("output", text))
	}
}

func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(string(o.last))
}

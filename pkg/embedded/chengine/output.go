package chengine

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
)

// tailBytes is how much of the child's last output goes into an error: a ClickHouse
// exception without its stack.
const tailBytes = 2 << 10

// maxLogBytes is the size at which the log file is renamed: weeks of a trial's
// mistakes.
const maxLogBytes = 16 << 20

// output writes the child's standard error to a file, or splits it into log lines. It
// keeps its end.
type output struct {
	log  *slog.Logger
	name string // of the log file; empty for log lines

	mu      sync.Mutex
	file    *os.File
	written int64
	line    []byte // incomplete line
	last    []byte // at most tailBytes
}

// open opens the log file, if there is one.
func (o *output) open() (err error) {
	if o.name == "" {
		return nil
	}
	if o.file, err = os.OpenFile(o.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err != nil {
		return errors.Join(err, o.file.Close())
	}
	o.written = info.Size()
	return nil
}

// toFile writes p to the log file. After an error it goes on without the file.
func (o *output) toFile(p []byte) {
	if o.file == nil {
		return
	}
	n, err := o.file.Write(p)
	if o.written += int64(n); o.written >= maxLogBytes && err == nil {
		err = errors.Join(o.file.Close(), os.Rename(o.name, o.name+".old"))
		o.file, o.written = nil, 0
		if err == nil {
			err = o.open()
		}
	}
	if err != nil {
		o.log.Error("cannot write the log of the clickhouse engine", slog.Any("error", err))
		o.file = nil
	}
}

// Write never fails: the child must not block on its log.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = append(o.last, p...)
	o.last = o.last[max(0, len(o.last)-tailBytes):]
	if o.name != "" {
		o.toFile(p)
		return len(p), nil
	}
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
	if o.file != nil {
		_ = o.file.Close() // each write was checked
		o.file = nil
	}
}

func (o *output) emit(line []byte) {
	if text := strings.TrimSpace(string(line)); text != "" {
		o.log.Warn("clickhouse engine", slog.String("output", text))
	}
}

// cause returns the reason in the child's last words: its last exception without the
// stack trace, or else all of them.
func (o *output) cause() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSpace(string(o.last))
	lines := strings.Split(text, "\n")
	for _, line := range slices.Backward(lines) {
		if _, exception, ok := strings.Cut(line, "DB::Exception: "); ok {
			exception, _, _ = strings.Cut(exception, ". Stack trace")
			exception, _, _ = strings.Cut(exception, ", Stack trace")
			exception, _, _ = strings.Cut(exception, " (version ")
			return exception
		}
	}
	return text
}

package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/rpc/callerror"
)

// progress writes lines with the time since the start. It is safe for
// concurrent use.
type progress struct {
	start time.Time

	mu sync.Mutex
	w  io.Writer
}

func newProgress(w io.Writer) *progress { return &progress{w: w, start: time.Now()} }

func (p *progress) printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.w, "[%5.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// failed returns a function that writes errors of exports, each text once: all services may have
// the same.
func (p *progress) failed() func(error) {
	var written sync.Map
	return func(err error) {
		text := callerror.Text(err)
		if _, again := written.LoadOrStore(text, true); !again {
			p.printf("export: %s", text)
		}
	}
}

// thousands formats n with separators: 20,480.
func thousands[T int | int64 | uint64](n T) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

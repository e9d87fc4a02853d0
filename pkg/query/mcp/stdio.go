package mcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"sync"
)

// lines is a client at the other end of two streams, with a JSON-RPC message in each line
// (MCP 2025-06-18, Transports, stdio). The SDK would end at a line that is not JSON, and
// drop the calls that run when the input ends; lines answers the one, and holds back the
// end of the input until the others are answered.
type lines struct {
	in  *bufio.Reader
	out io.Writer

	rest []byte // of the line that Read returns

	mu      sync.Mutex
	settled sync.Cond
	calls   map[string]bool // ids of calls without an answer
	written []byte          // an incomplete line
	closed  bool
}

func newLines(in io.Reader, out io.Writer) *lines {
	l := &lines{in: bufio.NewReader(in), out: out, calls: map[string]bool{}}
	l.settled.L = &l.mu
	return l
}

// message is what lines needs of a message.
type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		RequestID json.RawMessage `json:"requestId"`
	} `json:"params"`
}

const notJSON = `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error: the line is not a JSON message"}}` + "\n"

// Read implements io.Reader.
func (l *lines) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		line, err := l.in.ReadBytes('\n')
		if text := bytes.TrimSpace(line); len(text) > 0 {
			if !json.Valid(text) {
				if _, err := l.Write([]byte(notJSON)); err != nil {
					return 0, err
				}
				continue
			}
			l.read(text)
			l.rest = append(text, '\n')
			break
		}
		if err != nil {
			l.settle()
			return 0, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// read notes a call, or that its client gave it up: then it gets no answer.
func (l *lines) read(line []byte) {
	var m message
	_ = json.Unmarshal(line, &m) // what is not a message is the SDK's to refuse
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case m.Method == "notifications/cancelled":
		delete(l.calls, string(m.Params.RequestID))
	case m.Method != "" && m.ID != nil:
		l.calls[string(m.ID)] = true
	}
}

// settle waits until all calls are answered or the client is closed.
func (l *lines) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.calls) > 0 && !l.closed {
		l.settled.Wait()
	}
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.out.Write(p)
	l.written = append(l.written, p[:n]...)
	for {
		line, rest, whole := bytes.Cut(l.written, []byte("\n"))
		if !whole {
			return n, err
		}
		l.written = rest
		var m message
		if json.Unmarshal(line, &m) == nil && m.Method == "" {
			delete(l.calls, string(m.ID))
			l.settled.Broadcast()
		}
	}
}

// Close implements io.Closer. It leaves the streams open.
func (l *lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.settled.Broadcast()
	return nil
}

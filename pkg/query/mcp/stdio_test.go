package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const hello = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
`

// A client that writes all of its calls and closes its end gets an answer to each, in any
// order, and to a line that is not JSON.
func TestInputEndsWhileCallsRun(t *testing.T) {
	server := sdk.NewServer(&sdk.Implementation{Name: "test", Version: "1"}, nil)
	ended := make(chan struct{})
	sdk.AddTool(server, &sdk.Tool{Name: "wait"}, func(ctx context.Context, _ *sdk.CallToolRequest, _ struct{}) (*sdk.CallToolResult, any, error) {
		select {
		case <-ended: // the input
		case <-ctx.Done():
		}
		return &sdk.CallToolResult{}, nil, ctx.Err()
	})
	in := io.MultiReader(strings.NewReader(hello+`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wait","arguments":{}}}
nonsense

{"jsonrpc":"2.0","id":"two","method":"tools/call","params":{"name":"wait","arguments":{}}}`), ending{ended})
	var out strings.Builder
	err := server.Run(t.Context(), transport(in, &out))
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	answers := map[string]string{}
	for line := range strings.Lines(out.String()) {
		var m struct {
			ID            json.RawMessage
			Error, Result json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		answers[string(m.ID)] = string(m.Error)
	}
	if len(answers) != 4 || answers["0"] != "" || answers["1"] != "" || answers[`"two"`] != "" || !strings.Contains(answers["null"], "-32700") {
		t.Errorf("answers %q", answers)
	}
}

// ending is the end of an input, which it tells.
type ending struct{ told chan struct{} }

func (e ending) Read([]byte) (int, error) {
	close(e.told)
	return 0, io.EOF
}

// A call that its client gave up gets no answer, so the end of the input does not wait for it.
func TestInputEndsAfterACallWasGivenUp(t *testing.T) {
	var out strings.Builder
	l := newLines(strings.NewReader(`{"id":1,"method":"tools/call"}
{"id":2,"method":"tools/call"}
{"method":"notifications/cancelled","params":{"requestId":1}}
`), &out)
	messages := json.NewDecoder(l)
	for range 3 {
		if err := messages.Decode(&struct{}{}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- messages.Decode(&struct{}{}) }()
	for _, part := range []string{`{"id":2,`, "\"result\":{}}\n"} {
		if _, err := l.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

package process

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// The error for a program that dies contains its last output. The status of a
// JVM after SIGTERM is not an error.
func TestProcess(t *testing.T) {
	c, err := Start("the child", nil, "/bin/sh", "-c", "echo farewell; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = c.Await(t.Context(), func() (bool, error) { return false, nil })
	if err == nil || !strings.Contains(err.Error(), "the child ended too early (exit status 3)") || !strings.Contains(err.Error(), "farewell") {
		t.Errorf("await = %v", err)
	}
	for status, good := range map[int]bool{0: true, terminated: true, 1: false} {
		c, err := Start("the child", nil, "/bin/sh", "-c", fmt.Sprintf("trap 'exit %d' TERM; echo ready; while :; do sleep 0.01; done", status))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Await(t.Context(), func() (bool, error) { return strings.TrimSpace(c.LastOutput()) == "ready", nil }); err != nil {
			t.Fatal(err)
		}
		if err := c.Stop(); (err == nil) != good {
			t.Errorf("stop of a program that ends with %d = %v", status, err)
		}
	}
	if _, err := Start("the server", nil, "/does/not/exist"); err == nil || !strings.Contains(err.Error(), "run `make build`") {
		t.Errorf("start = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, err = Start("the child", nil, "/bin/sh", "-c", "exec sleep 60")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Await(ctx, func() (bool, error) { return false, nil }); err == nil {
		t.Error("await did not end with its context")
	}
	if err := c.Stop(); err == nil || !strings.Contains(err.Error(), "did not stop cleanly") {
		t.Errorf("stop = %v", err)
	}
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
)

// Operators see what is parked and why. A request that could not be sent again
// stays parked.
func TestParkedCommands(t *testing.T) {
	dir := t.TempDir()
	at := []string{"--spool-dir", dir, "--server", "127.0.0.1:1"}
	if code, _, stderr := execute(t, append([]string{"parked", "list"}, at...)...); code == program.ExitOK || !strings.Contains(stderr, "spool.dir") {
		t.Errorf("without a folder: status %d: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "parked")); err == nil {
		t.Error("list created the folder, possibly as a user other than the agent's")
	}
	folder, err := parked.Open(filepath.Join(dir, "parked"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	head := parked.Head{Signal: "spans", Items: 5, Refused: 2, Cause: "2 of 5 rejected: start_time", Received: time.Unix(1_790_000_000, 0)}
	if err := folder.Put(head, []byte("body")); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := execute(t, append([]string{"parked", "list"}, at...)...)
	for _, word := range []string{"2 of 5 rejected: start_time", "spans", "2026-09-21", "by retry", "1 parked request\n"} {
		if code != program.ExitOK || !strings.Contains(out, word) {
			t.Errorf("status %d, output lacks %q:\n%s%s", code, word, out, stderr)
		}
	}
	code, out, stderr = execute(t, append([]string{"parked", "retry", "--timeout", "10ms"}, at...)...)
	if code != program.ExitFailed || !strings.Contains(out, "0 requests sent") || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("retry without a server: status %d:\n%s%s", code, out, stderr)
	}
	if code, _, stderr := execute(t, append([]string{"parked", "retry", "nobody"}, at...)...); code == program.ExitOK || !strings.Contains(stderr, "nobody") {
		t.Errorf("retry of an unknown name: status %d: %s", code, stderr)
	}
	if n, _, _ := folder.Usage(); n != 1 {
		t.Errorf("%d requests parked, want 1", n)
	}
}

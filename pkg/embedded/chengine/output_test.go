package chengine

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The error of an engine that ended names the exception, not the stack below it.
func TestCauseIsTheException(t *testing.T) {
	stack := "\n\n0. DB::Exception::Exception(int) @ 0x0000001\n1. main @ 0x0000002\n"
	for text, want := range map[string]string{
		"Code: 210. DB::Exception: Cannot listen. (NETWORK_ERROR), Stack trace (when copying this message, always include the lines below):" + stack: "Cannot listen. (NETWORK_ERROR)",
		"first DB::Exception: old.\n2026 <Error> x: DB::Exception: no space left (version 26.7.3)":                                                   "no space left",
		"Killed": "Killed",
		"":       "",
	} {
		o := output{log: slog.New(slog.DiscardHandler), name: "log"}
		_, _ = o.Write([]byte(text))
		if got := o.cause(); got != want {
			t.Errorf("cause %q, want %q", got, want)
		}
	}
}

// The log file is bounded, and the terminal sees none of it.
func TestLogFileIsRenamedWhenFull(t *testing.T) {
	var terminal bytes.Buffer
	name := filepath.Join(t.TempDir(), "clickhouse.log")
	o := output{log: slog.New(slog.NewTextHandler(&terminal, nil)), name: name}
	if err := o.open(); err != nil {
		t.Fatal(err)
	}
	chunk := []byte(strings.Repeat("x", 1<<20-1) + "\n")
	for range 40 {
		if _, err := o.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	o.flush()
	for _, file := range []struct {
		name string
		size int64
	}{{name, 8 << 20}, {name + ".old", 16 << 20}} {
		if info, err := os.Stat(file.name); err != nil || info.Size() != file.size {
			t.Errorf("%s: %v, want %d bytes", file.name, info, file.size)
		}
	}
	if terminal.Len() > 0 {
		t.Errorf("the terminal shows %s", terminal.String())
	}
}

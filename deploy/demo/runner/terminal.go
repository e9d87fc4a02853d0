package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// Lines are as wide as the terminal within these bounds, and defaultWidth
	// without a terminal.
	minWidth, maxWidth = 100, 120
	defaultWidth       = 118
)

// terminal writes the answers.
type terminal struct {
	w      io.Writer
	width  int
	colour bool
}

// newTerminal inspects f. It uses colours only on a terminal and unless
// NO_COLOR is set (no-color.org).
func newTerminal(f *os.File) *terminal {
	t := &terminal{w: f, width: defaultWidth}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return t
	}
	t.colour = os.Getenv("NO_COLOR") == ""
	if size.Col > 0 {
		t.width = min(max(int(size.Col), minWidth), maxWidth)
	}
	return t
}

// Text styles.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (t *terminal) style(style, text string) string {
	if !t.colour || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// printf and println ignore write errors: the terminal may be closed.
func (t *terminal) printf(format string, args ...any) { _, _ = fmt.Fprintf(t.w, format, args...) }
func (t *terminal) println(line string)               { _, _ = fmt.Fprintln(t.w, line) }

package agentconfig

import (
	"fmt"
	"strings"
)

// Error holds all problems of a text.
type Error struct {
	Problems []Problem // in the order of the text, at least one
}

// Problem is one problem of a text.
type Problem struct {
	Line int    `json:"line,omitempty"` // counted from 1; 0 if it concerns no single line
	Key  string `json:"key,omitempty"`  // as written, with its sections; empty if it concerns no single key
	Text string `json:"text"`           // the problem, with the value found
}

func (p Problem) String() string {
	s := p.Text
	if p.Key != "" {
		s = p.Key + ": " + s
	}
	if p.Line > 0 {
		s = fmt.Sprintf("line %d: %s", p.Line, s)
	}
	return s
}

// Error returns one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

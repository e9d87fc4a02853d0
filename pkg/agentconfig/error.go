package agentconfig

import (
	"fmt"
	"strings"
)

// Error is everything that is wrong with a text.
type Error struct {
	Problems []Problem // in the order of the text, at least one
}

// Problem is one thing that is wrong.
type Problem struct {
	Line int    `json:"line,omitempty"` // counted from 1; 0 when it is about no single line
	Key  string `json:"key,omitempty"`  // as it was written, with its sections; empty when it is about no single key
	Text string `json:"text"`           // what is wrong, with the value found
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

// Error has one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

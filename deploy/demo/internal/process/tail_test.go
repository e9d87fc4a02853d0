package process

import (
	"fmt"
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("line %d\n", i)
	}
	tests := map[string]struct {
		writes []string
		want   string
	}{
		"nothing":                {nil, "  (no output)"},
		"lines":                  {[]string{"a\nb\n"}, "  a\n  b"},
		"a line in pieces":       {[]string{"a", "b", "c\nd"}, "  abc\n  d"},
		"an empty line":          {[]string{"a\n\nb\n"}, "  a\n  \n  b"},
		"a line without end":     {[]string{strings.Repeat("x", 3000), strings.Repeat("y", 3000)}, "  " + strings.Repeat("x", tailLine)},
		"the last of many":       {many, "  " + strings.TrimSuffix(strings.Join(many[85:], "  "), "\n")},
		"the last of many, open": {append(many[:100:100], "open"), "  " + strings.Join(many[85:], "  ") + "  open"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var tail tail
			for _, w := range tc.writes {
				if n, err := tail.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("Write = %d, %v, want %d", n, err, len(w))
				}
			}
			if got := tail.String(); got != tc.want {
				t.Errorf("tail is %q, want %q", got, tc.want)
			}
		})
	}
}

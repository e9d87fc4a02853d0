package fault_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

func TestShorten(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"short":           {"connection refused", "connection refused"},
		"invalid":         {"value \xff\xfe refused", "value ? refused"},
		"as long as may":  {strings.Repeat("x", 100), strings.Repeat("x", 100)},
		"long":            {"cannot parse '" + strings.Repeat("x", 1000) + "' in port", "cannot parse '" + strings.Repeat("x", 26) + " [963 bytes left out] " + strings.Repeat("x", 11) + "' in port"},
		"within of runes": {strings.Repeat("\u65e5", 100), strings.Repeat("\u65e5", 13) + "? [240 bytes left out] ?" + strings.Repeat("\u65e5", 6)},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := fault.Shorten(tc.text, 100)
			if got != tc.want || len(got) > 100 || !utf8.ValidString(got) {
				t.Errorf("Shorten = %q, want %q", got, tc.want)
			}
		})
	}
}

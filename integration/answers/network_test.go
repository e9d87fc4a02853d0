package answers

import (
	"regexp"
	"strings"
	"testing"
)

// The page explains every verdict, and every reason for the absence of one,
// that the views return.
func TestVerdictsAreDocumented(t *testing.T) {
	page := read(t, root+"/docs/query-network.md")
	view := read(t, root+"/migrations/views/trace_network.sql") + read(t, root+"/migrations/views/network_trouble.sql")
	words := regexp.MustCompile(`'((?:[a-z]|'')[^'\n]*(?:''[^'\n]*)*)'`)
	found := map[string]bool{}
	for _, column := range []string{"unmatched", "verdict", "matched"} {
		for _, m := range regexp.MustCompile(`(?s)multiIf\(([^;]*?)\) AS `+column+`\b`).FindAllStringSubmatch(view, -1) {
			// The last multiIf before the column's name.
			body := m[1][strings.LastIndex(m[1], "multiIf(")+1:]
			for _, w := range words.FindAllStringSubmatch(body, -1) {
				found[strings.ReplaceAll(w[1], "''", "'")] = true
			}
		}
	}
	// Lists of which a position selects the word.
	for _, list := range regexp.MustCompile(`\[('(?:connect refused|ip and port)[^\]]*)\]`).FindAllStringSubmatch(view, -1) {
		for _, w := range words.FindAllStringSubmatch(list[1], -1) {
			found[strings.ReplaceAll(w[1], "''", "'")] = true
		}
	}
	for _, kind := range []string{"client", "server", "unknown"} { // values that are compared with, not returned
		delete(found, kind)
	}
	if len(found) < 25 {
		t.Fatalf("found only %d words in the views: %v", len(found), found)
	}
	for word := range found {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("docs/query-network.md does not explain %q", word)
		}
	}
}

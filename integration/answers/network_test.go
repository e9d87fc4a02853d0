package answers

import (
	"regexp"
	"strings"
	"testing"
)

// Every verdict and every reason for none that the views give stands on their page.
func TestVerdictsAreExplained(t *testing.T) {
	page := read(t, root+"/docs/query-network.md")
	view := read(t, root+"/migrations/views/trace_network.sql") + read(t, root+"/migrations/views/network_trouble.sql")
	words := regexp.MustCompile(`'((?:[a-z]|'')[^'\n]*(?:''[^'\n]*)*)'`)
	found := map[string]bool{}
	for _, column := range []string{"unmatched", "verdict", "matched"} {
		for _, m := range regexp.MustCompile(`(?s)multiIf\(([^;]*?)\) AS `+column+`\b`).FindAllStringSubmatch(view, -1) {
			// The last multiIf before the name of the column.
			body := m[1][strings.LastIndex(m[1], "multiIf(")+1:]
			for _, w := range words.FindAllStringSubmatch(body, -1) {
				found[strings.ReplaceAll(w[1], "''", "'")] = true
			}
		}
	}
	for _, kind := range []string{"client", "server", "unknown"} { // what is compared with, not what is said
		delete(found, kind)
	}
	if len(found) < 15 {
		t.Fatalf("only %d words are found in the views: %v", len(found), found)
	}
	for word := range found {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("docs/query-network.md does not explain %q", word)
		}
	}
}

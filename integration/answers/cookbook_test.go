package answers

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
)

const cookbook = "../../docs/query.md"

var (
	current = regexp.MustCompile(`\bnow\(\)`)
	lately  = regexp.MustCompile(`minutes = (\d+)`)
)

// asOf makes a query believe that the shop's hour has just ended.
func asOf(query string) string {
	query = current.ReplaceAllString(query, "toDateTime('"+shop.End.Format(time.DateTime)+"', 'UTC')")
	// The view itself reads the clock.
	return lately.ReplaceAllString(query, fmt.Sprintf("minutes = $1 + %d", int(time.Since(shop.End).Minutes())))
}

// Every query of the page returns what the page shows.
func TestCookbook(t *testing.T) {
	text, err := os.ReadFile(cookbook)
	if err != nil {
		t.Fatal(err)
	}
	db := open(t)
	const begin, between, end = "```sql\n", "```\n```\n", "```\n"
	parts := strings.Split(string(text), begin)
	if len(parts) < 21 {
		t.Errorf("found %d queries, want 20", len(parts)-1)
	}
	page := parts[0]
	for _, part := range parts[1:] {
		query, rest, ok := strings.Cut(part, between)
		shown, rest, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Fatalf("no answer below this query:\n%s", part)
		}
		got := db.table(asOf(query))
		if got == "" {
			t.Errorf("nothing answers\n%s", query)
		}
		if *update {
			shown = got
		}
		if diff := cmp.Diff(shown, got); diff != "" {
			t.Errorf("the answer differs; run with -update (-page +ClickHouse):\n%s\nto\n%s", diff, query)
		}
		page += begin + query + between + shown + end + rest
	}
	if *update {
		if err := os.WriteFile(cookbook, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

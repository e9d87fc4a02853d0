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

// asOf lets a query believe that the shop's hour has just passed.
func asOf(query string) string {
	query = current.ReplaceAllString(query, "toDateTime('"+shop.End.Format(time.DateTime)+"', 'UTC')")
	// The view reads the clock itself.
	return lately.ReplaceAllString(query, fmt.Sprintf("minutes = $1 + %d", int(time.Since(shop.End).Minutes())))
}

// Every question of the page is answered with what the page shows.
func TestCookbook(t *testing.T) {
	text, err := os.ReadFile(cookbook)
	if err != nil {
		t.Fatal(err)
	}
	db := open(t)
	const begin, between, end = "```sql\n", "```\n```\n", "```\n"
	parts := strings.Split(string(text), begin)
	if len(parts) < 21 {
		t.Errorf("there are %d questions, want 20", len(parts)-1)
	}
	page := parts[0]
	for _, part := range parts[1:] {
		query, rest, ok := strings.Cut(part, between)
		shown, rest, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Fatalf("this query has no answer below it:\n%s", part)
		}
		got := db.table(asOf(query))
		if got == "" {
			t.Errorf("nothing answers\n%s", query)
		}
		if *update {
			shown = got
		}
		if diff := cmp.Diff(shown, got); diff != "" {
			t.Errorf("the page shows another answer; -update writes it (-page +ClickHouse):\n%s\nto\n%s", diff, query)
		}
		page += begin + query + between + shown + end + rest
	}
	if *update {
		if err := os.WriteFile(cookbook, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

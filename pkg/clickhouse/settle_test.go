package clickhouse

import "testing"

func TestCovers(t *testing.T) {
	for query, tc := range map[string]struct{ of, not []string }{
		QueryOf("a.spans", 3):             {of: []string{"a.spans/3"}, not: []string{"a.spans/30", "a.spans/1", "b.spans/3", "a.spans", "3", ""}},
		QueryOf("a.spans", 1, 3, 4, 5, 9): {of: []string{"a.spans/1", "a.spans/3", "a.spans/4", "a.spans/5", "a.spans/9"}, not: []string{"a.spans/2", "a.spans/6", "a.spans/10", "a.spans/-1", "x/a.spans/1"}},
		QueryOf("t", 0, 1, 2):             {of: []string{"t/0", "t/1", "t/2"}, not: []string{"t/3", "t/0-2x", "t/x"}},
		"backfill":                        {of: []string{"backfill"}, not: []string{"backfill/1", "t/1"}},
		"t/1-x,y,4":                       {of: []string{"t/4"}, not: []string{"t/1", "t/0"}},
	} {
		for _, one := range tc.of {
			if !Covers(query, one) {
				t.Errorf("%q does not cover %q", query, one)
			}
		}
		for _, one := range tc.not {
			if Covers(query, one) {
				t.Errorf("%q covers %q", query, one)
			}
		}
	}
	if got, want := QueryOf("t", 1, 3, 4, 5, 9), "t/1,3-5,9"; got != want {
		t.Errorf("QueryOf = %q, want %q", got, want)
	}
}

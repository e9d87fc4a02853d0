package plan_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/plan"
)

func TestParse(t *testing.T) {
	tests := map[string]struct {
		metadata string
		to       int64
		ok, bad  bool
	}{
		"first commit of a group":      {"", 0, false, false},
		"offsets reset by an operator": {"reset by kafka-consumer-groups", 0, false, false},
		"a plan":                       {"metaflow/1 to=120", 120, true, false},
		"a newer writer's plan":        {"metaflow/2 to=120 rows=5", 0, false, true},
		"no end":                       {"metaflow/1", 0, false, true},
		"end is no number":             {"metaflow/1 to=x", 0, false, true},
		"nothing in it":                {"metaflow/1 to=100", 0, false, true},
		"ends before it begins":        {"metaflow/1 to=99", 0, false, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			to, ok, err := plan.Parse(100, tc.metadata)
			if to != tc.to || ok != tc.ok || (err != nil) != tc.bad {
				t.Errorf("Parse(100, %q) = %d, %v, %v", tc.metadata, to, ok, err)
			}
		})
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Int64Range(0, 1<<62).Draw(t, "from")
		to := rapid.Int64Range(from+1, 1<<62+1).Draw(t, "to")
		if got, ok, err := plan.Parse(from, plan.Metadata(to)); got != to || !ok || err != nil {
			t.Fatalf("Parse(%d, %q) = %d, %v, %v", from, plan.Metadata(to), got, ok, err)
		}
	})
}

// Two writers that form the same range must agree on its token to the byte,
// across versions of the program.
func TestTokenIsForever(t *testing.T) {
	r := plan.Range{Topic: "metaflow.spans", Partition: 7, From: 100, To: 250}
	if got, want := r.Token(), "metaflow.spans/7/100-250"; got != want {
		t.Errorf("Token = %q, want %q", got, want)
	}
	if got, want := r.Part(0, 3), "metaflow.spans/7/100-250/rows/0-3"; got != want {
		t.Errorf("Part = %q, want %q", got, want)
	}
}

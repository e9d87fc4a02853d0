package plan_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/plan"
)

func TestParse(t *testing.T) {
	const nothing, wrong = false, true
	tests := map[string]struct {
		metadata string
		want     plan.Plan
		ok, bad  bool
	}{
		"first commit of a group":      {"", plan.Plan{}, nothing, false},
		"offsets reset by an operator": {"reset by kafka-consumer-groups", plan.Plan{}, nothing, false},
		"a plan":                       {"metaflow/2 to=120 first=1700000000000 shard=1", plan.Plan{To: 120, First: 1_700_000_000_000, Shard: 1}, true, false},
		"of a refused range":           {"metaflow/2 to=120 first=5 shard=0 apart", plan.Plan{To: 120, First: 5, Apart: true}, true, false},
		"of an older writer":           {"metaflow/1 to=120", plan.Plan{To: 120, Shard: -1}, true, false},
		"a newer writer's plan":        {"metaflow/3 to=120 rows=5", plan.Plan{}, false, wrong},
		"no end":                       {"metaflow/2", plan.Plan{}, false, wrong},
		"an older one without end":     {"metaflow/1", plan.Plan{}, false, wrong},
		"end is no number":             {"metaflow/2 to=x first=1 shard=0", plan.Plan{}, false, wrong},
		"no shard":                     {"metaflow/2 to=120 first=1", plan.Plan{}, false, wrong},
		"no number of a shard":         {"metaflow/2 to=120 first=1 shard=", plan.Plan{}, false, wrong},
		"more than is known":           {"metaflow/2 to=120 first=1 shard=0 apart x=1", plan.Plan{}, false, wrong},
		"another word":                 {"metaflow/2 to=120 first=1 shard=0 x=1", plan.Plan{}, false, wrong},
		"nothing in it":                {"metaflow/2 to=100 first=1 shard=0", plan.Plan{}, false, wrong},
		"ends before it begins":        {"metaflow/1 to=99", plan.Plan{}, false, wrong},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok, err := plan.Parse(100, tc.metadata)
			if got != tc.want || ok != tc.ok || (err != nil) != tc.bad {
				t.Errorf("Parse(100, %q) = %+v, %v, %v", tc.metadata, got, ok, err)
			}
		})
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Int64Range(0, 1<<62).Draw(t, "from")
		want := plan.Plan{
			To:    rapid.Int64Range(from+1, 1<<62+1).Draw(t, "to"),
			First: rapid.Int64().Draw(t, "first"),
			Shard: rapid.IntRange(0, 1000).Draw(t, "shard"),
			Apart: rapid.Bool().Draw(t, "apart"),
		}
		if got, ok, err := plan.Parse(from, want.Metadata()); got != want || !ok || err != nil {
			t.Fatalf("Parse(%d, %q) = %+v, %v, %v", from, want.Metadata(), got, ok, err)
		}
	})
}

// Two writers that form the same range must agree on its token to the byte,
// across versions of the program.
func TestTokenIsForever(t *testing.T) {
	r := plan.Range{Topic: "metaflow.spans", Partition: 7, From: 100, To: 250, First: 1_700_000_000_000}
	old := r
	old.First = 0
	for _, tc := range []struct{ got, want string }{
		{r.Token(), "metaflow.spans/7/100-250@1700000000000"},
		{r.Part(0, 3), "metaflow.spans/7/100-250@1700000000000/rows/0-3"},
		{old.Token(), "metaflow.spans/7/100-250"},
		{old.Part(0, 3), "metaflow.spans/7/100-250/rows/0-3"},
	} {
		if tc.got != tc.want {
			t.Errorf("token is %q, want %q", tc.got, tc.want)
		}
	}
}

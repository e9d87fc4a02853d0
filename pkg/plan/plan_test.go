package plan_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/plan"
)

func TestParse(t *testing.T) {
	const foreign, wrong = false, true
	planned := func(p plan.Plan) plan.Commit { return plan.Commit{Plan: p} }
	tests := map[string]struct {
		metadata string
		want     plan.Commit
		ok, bad  bool
	}{
		"first commit of a group":      {"", plan.Commit{}, foreign, false},
		"offsets reset by an operator": {"reset by kafka-consumer-groups", plan.Commit{}, foreign, false},
		"at rest":                      {"metaflow topic=AAAAAAAAAAAAAAAAAAAAAQ", plan.Commit{Topic: "AAAAAAAAAAAAAAAAAAAAAQ"}, true, false},
		"at rest without an id":        {"metaflow", plan.Commit{}, true, false},
		"at its offset":                {"metaflow at=100", plan.Commit{}, true, false},
		"moved by somebody else":       {"metaflow/3 topic=x at=50 to=120 first=1 shard=0", plan.Commit{}, foreign, false},
		"moved behind its end":         {"metaflow/3 topic=x at=50 to=90 first=1 shard=0", plan.Commit{}, foreign, false},
		"unsure":                       {"metaflow/3 topic=x unsure=500", plan.Commit{Topic: "x", Unsure: 500}, true, false},
		"a plan": {
			"metaflow/3 topic=x to=120 first=1700000000000 shard=1",
			plan.Commit{Topic: "x", Plan: plan.Plan{To: 120, First: 1_700_000_000_000, Shard: 1}},
			true, false,
		},
		"a plan that is unsure": {
			"metaflow/3 unsure=400 to=120 first=0 shard=0",
			plan.Commit{Unsure: 400, Plan: plan.Plan{To: 120}},
			true, false,
		},
		"of version 2":                    {"metaflow/2 to=120 first=5 shard=1", planned(plan.Plan{To: 120, First: 5, Shard: 1}), true, false},
		"of version 2, taken apart":       {"metaflow/2 to=120 first=5 shard=0 apart", planned(plan.Plan{To: 120, First: 5}), true, false},
		"of version 1":                    {"metaflow/1 to=120", planned(plan.Plan{To: 120, Shard: -1}), true, false},
		"of a newer writer":               {"metaflow/4 to=120 rows=5", plan.Commit{}, false, wrong},
		"version 2 without end":           {"metaflow/2", plan.Commit{}, false, wrong},
		"version 1 without end":           {"metaflow/1", plan.Commit{}, false, wrong},
		"end is no number":                {"metaflow/3 to=x first=1 shard=0", plan.Commit{}, false, wrong},
		"no shard":                        {"metaflow/3 to=120 first=1", plan.Commit{}, false, wrong},
		"an end alone":                    {"metaflow/3 to=120", plan.Commit{}, false, wrong},
		"no number of a shard":            {"metaflow/2 to=120 first=1 shard=", plan.Commit{}, false, wrong},
		"a word that is not known":        {"metaflow/3 to=120 first=1 shard=0 x=1", plan.Commit{}, false, wrong},
		"a word twice":                    {"metaflow/3 to=120 first=1 shard=0 to=130", plan.Commit{}, false, wrong},
		"no word":                         {"metaflow topic", plan.Commit{}, false, wrong},
		"a negative number":               {"metaflow/3 unsure=-1", plan.Commit{}, false, wrong},
		"nothing in the range":            {"metaflow/3 to=100 first=1 shard=0", plan.Commit{}, false, wrong},
		"version 1 that ends too early":   {"metaflow/1 to=99", plan.Commit{}, false, wrong},
		"version 1 with words of another": {"metaflow/1 to=120 first=1", plan.Commit{}, false, wrong},
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
		want := plan.Commit{
			Topic:  rapid.StringMatching(`[A-Za-z0-9_-]{22}|`).Draw(t, "topic"),
			Unsure: rapid.Int64Range(0, 1<<62).Draw(t, "unsure"),
		}
		if rapid.Bool().Draw(t, "planned") {
			want.Plan = plan.Plan{
				To:    rapid.Int64Range(from+1, 1<<62+1).Draw(t, "to"),
				First: rapid.Int64().Draw(t, "first"),
				Shard: rapid.IntRange(0, 1000).Draw(t, "shard"),
			}
		}
		if got, ok, err := plan.Parse(from, want.Metadata(from)); got != want || !ok || err != nil {
			t.Fatalf("Parse(%d, %q) = %+v, %v, %v", from, want.Metadata(from), got, ok, err)
		}
	})
}

// What a writer commits when nothing is left to do must not stop an older one, which refuses
// every word that begins with "metaflow/" and that it does not know.
func TestMetadataAtRest(t *testing.T) {
	for _, tc := range []struct {
		commit plan.Commit
		want   string
	}{
		{plan.Commit{}, "metaflow at=5"},
		{plan.Commit{Topic: "x"}, "metaflow topic=x at=5"},
		{plan.Commit{Topic: "x", Unsure: 7}, "metaflow/3 topic=x at=5 unsure=7"},
		{plan.Commit{Topic: "x", Plan: plan.Plan{To: 9, First: 8, Shard: 1}}, "metaflow/3 topic=x at=5 to=9 first=8 shard=1"},
	} {
		if got := tc.commit.Metadata(5); got != tc.want {
			t.Errorf("%+v is %q, want %q", tc.commit, got, tc.want)
		}
	}
}

// Two writers that form the same range must agree on its token to the byte,
// across versions of the program.
func TestTokenIsForever(t *testing.T) {
	r := plan.Range{Topic: "metaflow.spans", Partition: 7, From: 100, To: 250, First: 1_700_000_000_000}
	old := r
	old.First = 0
	withID := r
	withID.TopicID = "AAAAAAAAAAAAAAAAAAAAAQ"
	for _, tc := range []struct{ got, want string }{
		{r.Token(), "metaflow.spans/7/100-250@1700000000000"},
		{old.Token(), "metaflow.spans/7/100-250"},
		{withID.Token(), "metaflow.spans/7/100-250@1700000000000+AAAAAAAAAAAAAAAAAAAAAQ"},
	} {
		if tc.got != tc.want {
			t.Errorf("token is %q, want %q", tc.got, tc.want)
		}
	}
}

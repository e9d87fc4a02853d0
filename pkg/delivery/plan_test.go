package delivery

import (
	"testing"

	"pgregory.net/rapid"
)

func TestParseCommit(t *testing.T) {
	const foreign, wrong = false, true
	planned := func(p Plan) Commit { return Commit{Plan: p} }
	tests := map[string]struct {
		metadata string
		want     Commit
		ok, bad  bool
	}{
		"first commit of a group":      {"", Commit{}, foreign, false},
		"offsets reset by an operator": {"reset by kafka-consumer-groups", Commit{}, foreign, false},
		"at rest":                      {"metaflow topic=AAAAAAAAAAAAAAAAAAAAAQ", Commit{Topic: "AAAAAAAAAAAAAAAAAAAAAQ"}, true, false},
		"at rest without an id":        {"metaflow", Commit{}, true, false},
		"at its offset":                {"metaflow at=100", Commit{}, true, false},
		"moved by somebody else":       {"metaflow/3 topic=x at=50 to=120 first=1 shard=0", Commit{}, foreign, false},
		"moved behind its end":         {"metaflow/3 topic=x at=50 to=90 first=1 shard=0", Commit{}, foreign, false},
		"unsure":                       {"metaflow/3 topic=x unsure=500", Commit{Topic: "x", Unsure: 500}, true, false},
		"a plan": {
			"metaflow/3 topic=x to=120 first=1700000000000 shard=1",
			Commit{Topic: "x", Plan: Plan{To: 120, First: 1_700_000_000_000, Shard: 1}},
			true, false,
		},
		"a plan that is unsure": {
			"metaflow/3 unsure=400 to=120 first=0 shard=0",
			Commit{Unsure: 400, Plan: Plan{To: 120}},
			true, false,
		},
		"of version 2":                    {"metaflow/2 to=120 first=5 shard=1", planned(Plan{To: 120, First: 5, Shard: 1}), true, false},
		"of version 2, taken apart":       {"metaflow/2 to=120 first=5 shard=0 apart", planned(Plan{To: 120, First: 5}), true, false},
		"of version 1":                    {"metaflow/1 to=120", planned(Plan{To: 120, Shard: -1}), true, false},
		"of a newer writer":               {"metaflow/4 to=120 rows=5", Commit{}, false, wrong},
		"of a still newer writer":         {"metaflow/5 to=120 first=1 shard=0", Commit{}, false, wrong},
		"joined":                          {"metaflow/4 to=120 first=5 shard=1", planned(Plan{To: 120, First: 5, Shard: 1, Joined: true}), true, false},
		"joined, moved by somebody else":  {"metaflow/4 at=50 to=120 first=5 shard=1", Commit{}, foreign, false},
		"joined without a plan":           {"metaflow/4 unsure=7", Commit{}, false, wrong},
		"version 2 without end":           {"metaflow/2", Commit{}, false, wrong},
		"version 1 without end":           {"metaflow/1", Commit{}, false, wrong},
		"end is no number":                {"metaflow/3 to=x first=1 shard=0", Commit{}, false, wrong},
		"no shard":                        {"metaflow/3 to=120 first=1", Commit{}, false, wrong},
		"an end alone":                    {"metaflow/3 to=120", Commit{}, false, wrong},
		"no number of a shard":            {"metaflow/2 to=120 first=1 shard=", Commit{}, false, wrong},
		"a word that is not known":        {"metaflow/3 to=120 first=1 shard=0 x=1", Commit{}, false, wrong},
		"a word twice":                    {"metaflow/3 to=120 first=1 shard=0 to=130", Commit{}, false, wrong},
		"no word":                         {"metaflow topic", Commit{}, false, wrong},
		"a negative number":               {"metaflow/3 unsure=-1", Commit{}, false, wrong},
		"nothing in the range":            {"metaflow/3 to=100 first=1 shard=0", Commit{}, false, wrong},
		"version 1 that ends too early":   {"metaflow/1 to=99", Commit{}, false, wrong},
		"version 1 with words of another": {"metaflow/1 to=120 first=1", Commit{}, false, wrong},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok, err := ParseCommit(100, tc.metadata)
			if got != tc.want || ok != tc.ok || (err != nil) != tc.bad {
				t.Errorf("ParseCommit(100, %q) = %+v, %v, %v", tc.metadata, got, ok, err)
			}
		})
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Int64Range(0, 1<<62).Draw(t, "from")
		want := Commit{
			Topic:  rapid.StringMatching(`[A-Za-z0-9_-]{22}|`).Draw(t, "topic"),
			Unsure: rapid.Int64Range(0, 1<<62).Draw(t, "unsure"),
		}
		if rapid.Bool().Draw(t, "planned") {
			want.Plan = Plan{
				To:    rapid.Int64Range(from+1, 1<<62+1).Draw(t, "to"),
				First: rapid.Int64().Draw(t, "first"),
				Shard: rapid.IntRange(0, 1000).Draw(t, "shard"),

				Joined: rapid.Bool().Draw(t, "joined"),
			}
		}
		if got, ok, err := ParseCommit(from, want.Metadata(from)); got != want || !ok || err != nil {
			t.Fatalf("ParseCommit(%d, %q) = %+v, %v, %v", from, want.Metadata(from), got, ok, err)
		}
	})
}

// What a writer commits when nothing is left to do must not stop an older one, which refuses
// every word that begins with "metaflow/" and that it does not know.
func TestMetadataAtRest(t *testing.T) {
	for _, tc := range []struct {
		commit Commit
		want   string
	}{
		{Commit{}, "metaflow at=5"},
		{Commit{Topic: "x"}, "metaflow topic=x at=5"},
		{Commit{Topic: "x", Unsure: 7}, "metaflow/3 topic=x at=5 unsure=7"},
		{Commit{Topic: "x", Plan: Plan{To: 9, First: 8, Shard: 1}}, "metaflow/3 topic=x at=5 to=9 first=8 shard=1"},
		{Commit{Topic: "x", Plan: Plan{To: 9, First: 8, Shard: 1, Joined: true}}, "metaflow/4 topic=x at=5 to=9 first=8 shard=1"},
	} {
		if got := tc.commit.Metadata(5); got != tc.want {
			t.Errorf("%+v is %q, want %q", tc.commit, got, tc.want)
		}
	}
}

// Two writers that form the same range must agree on its token to the byte,
// across versions of the program.
func TestTokenIsForever(t *testing.T) {
	r := Range{Topic: "metaflow.spans", Partition: 7, From: 100, To: 250, First: 1_700_000_000_000}
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

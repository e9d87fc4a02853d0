package query

import "testing"

// Rows without a verdict say why nothing is known; they are no knowledge of the network.
func TestNetworkKnown(t *testing.T) {
	for name, tc := range map[string]struct {
		network map[SpanKey]Network
		want    bool
	}{
		"no rows":                 {nil, false},
		"no connection was found": {map[SpanKey]Network{{}: {Unmatched: "no address of that name"}}, false},
		"one was clean":           {map[SpanKey]Network{{}: {Verdict: Clean}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Trace{Network: tc.network}).NetworkKnown(); got != tc.want {
				t.Errorf("%t, want %t", got, tc.want)
			}
		})
	}
}

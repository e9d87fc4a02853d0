package query

import (
	"slices"
	"testing"
	"time"
)

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

// Traces are looked at together if they began near to the first, and are neither too many nor
// too large.
func TestNear(t *testing.T) {
	at := func(minutes, spans int) candidate {
		return candidate{start: time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute), spans: spans}
	}
	many := slices.Repeat([]candidate{at(3, 10)}, tracesPerLook+2)
	for name, tc := range map[string]struct {
		of               []candidate
		together, others int
	}{
		"one":                        {[]candidate{at(0, 8)}, 1, 0},
		"one that is large":          {[]candidate{at(0, 10*spansPerLook)}, 1, 0},
		"before and after the first": {[]candidate{at(10, 8), at(12, 8), at(20, 8), at(8, 8), at(0, 8)}, 3, 2},
		"many":                       {many, tracesPerLook, 2},
		"large ones":                 {[]candidate{at(0, spansPerLook/2), at(0, spansPerLook), at(0, spansPerLook/2), at(0, 1)}, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			together, others := near(tc.of)
			if len(together) != tc.together || len(others) != tc.others || together[0] != tc.of[0] {
				t.Errorf("%v together, %v others", together, others)
			}
		})
	}
}

// Every verdict but that of a clean network has flow data that may show it.
func TestTroubleOfVerdicts(t *testing.T) {
	for _, v := range Verdicts {
		if (trouble[v] == "") != (v == Clean) {
			t.Errorf("%s is shown by %q", v, trouble[v])
		}
	}
	for _, v := range failures {
		if !slices.Contains(Verdicts, v) {
			t.Errorf("%q is no verdict", v)
		}
	}
}

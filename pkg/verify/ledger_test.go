package verify

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

func testLedger() *ledger {
	cfg := DefaultConfig()
	cfg.Late, cfg.LostAfter, cfg.Recheck, cfg.Poll = 10*time.Second, time.Minute, 20*time.Second, time.Second
	return newLedger(cfg, newMaker("test"))
}

// oneTrace sends a whole trace that is answered at epoch and returns its id and spans.
func oneTrace(t *testing.T, l *ledger, o outcome) (traceID, []Span) {
	t.Helper()
	r, err := l.maker.request(7, epoch.Add(-time.Millisecond), spansOfTrace)
	if err != nil {
		t.Fatal(err)
	}
	l.sent(r, o, epoch)
	return l.maker.id(7), l.maker.spans(7, epoch.Add(-time.Millisecond), spansOfTrace)
}

// answer looks everything up that is due at a time, and answers with rows.
func answer(l *ledger, at time.Time, rows []Span) (asked int) {
	ids, _, _ := l.due(at)
	l.found(ids, rows, at, at)
	return len(ids)
}

func TestStoredOnceAndForgotten(t *testing.T) {
	l := testLedger()
	_, spans := oneTrace(t, l, acknowledged)
	answer(l, epoch, nil)
	if n := answer(l, epoch.Add(500*time.Millisecond), spans); n != 0 {
		t.Error("looked up again before the pause was over")
	}
	answer(l, epoch.Add(time.Second), spans[:1])
	answer(l, epoch.Add(2*time.Second), spans)
	answer(l, epoch.Add(22*time.Second), spans)
	if n := len(l.waiting); n != 0 {
		t.Errorf("%d traces still wait after the last lookup", n)
	}
	r := l.close()
	if !r.Right() || r.Stored != spansOfTrace || r.Delay.Max != 2*time.Second || r.Delay.P50 != 2*time.Second {
		t.Errorf("report %+v", r)
	}
}

func TestWhatIsWrongIsCounted(t *testing.T) {
	tests := map[string]struct {
		outcome outcome
		// story answers lookups; spans are those that were sent.
		story func(l *ledger, spans []Span)
		want  Report
	}{
		"lost": {acknowledged, func(l *ledger, spans []Span) {
			answer(l, epoch.Add(time.Minute), spans[:3])
			answer(l, epoch.Add(80*time.Second), spans[:3])
		}, Report{Sent: 4, Acknowledged: 4, Stored: 3, Lost: 1, Late: 3}},
		"no answer proves nothing": {acknowledged, func(l *ledger, _ []Span) {
			l.due(epoch.Add(time.Hour))
		}, Report{Sent: 4, Acknowledged: 4, Unverified: 4}},
		"a lookup that was asked too early proves nothing": {acknowledged, func(l *ledger, _ []Span) {
			ids, _, _ := l.due(epoch.Add(time.Second))
			l.found(ids, nil, epoch.Add(time.Second), epoch.Add(time.Hour))
		}, Report{Sent: 4, Acknowledged: 4, Unverified: 4}},
		"lost, but came": {acknowledged, func(l *ledger, spans []Span) {
			answer(l, epoch.Add(time.Minute), nil)
			answer(l, epoch.Add(80*time.Second), spans)
		}, Report{Sent: 4, Acknowledged: 4, Stored: 4, Late: 4}},
		"late": {acknowledged, func(l *ledger, spans []Span) {
			answer(l, epoch.Add(time.Second), spans[:2])
			answer(l, epoch.Add(11*time.Second), spans)
			answer(l, epoch.Add(31*time.Second), spans)
		}, Report{Sent: 4, Acknowledged: 4, Stored: 4, Late: 2}},
		"twice at once": {acknowledged, func(l *ledger, spans []Span) {
			answer(l, epoch, append(spans, spans[2]))
			answer(l, epoch.Add(20*time.Second), append(spans, spans[2]))
		}, Report{Sent: 4, Acknowledged: 4, Stored: 4, Twice: 1}},
		"twice, later": {acknowledged, func(l *ledger, spans []Span) {
			answer(l, epoch, spans)
			answer(l, epoch.Add(20*time.Second), append(spans, spans...))
		}, Report{Sent: 4, Acknowledged: 4, Stored: 4, Twice: 4}},
		"damaged": {acknowledged, func(l *ledger, spans []Span) {
			spans[1].Attributes = maps.Clone(spans[1].Attributes)
			delete(spans[1].Attributes, "metaflow.verify.text")
			spans[3].Duration++
			answer(l, epoch, spans)
			answer(l, epoch.Add(20*time.Second), spans)
		}, Report{Sent: 4, Acknowledged: 4, Stored: 4, Damaged: 2}},
		"refused spans are not expected": {refused, func(l *ledger, spans []Span) {
			answer(l, epoch.Add(time.Minute), nil)
		}, Report{Sent: 4, Refused: 4}},
		"unanswered spans may be missing": {unanswered, func(l *ledger, _ []Span) {
			answer(l, epoch.Add(time.Minute), nil)
		}, Report{Sent: 4, Unanswered: 4}},
		"unanswered spans may be there, but not twice": {unanswered, func(l *ledger, spans []Span) {
			answer(l, epoch.Add(time.Minute), append(spans, spans[0]))
		}, Report{Sent: 4, Unanswered: 4, Twice: 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := testLedger()
			_, spans := oneTrace(t, l, test.outcome)
			test.story(l, slices.Clone(spans))
			got := l.close()
			if got.Right() {
				t.Error("the report is said to be right")
			}
			counts := func(r Report) [10]int64 {
				return [10]int64{r.Sent, r.Acknowledged, r.Refused, r.Unanswered, r.Stored, r.Lost, r.Unverified, r.Twice, r.Damaged, r.Late}
			}
			if counts(got) != counts(test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// Whatever lookups show, in whatever order, the counts add up and nothing waits for ever.
func TestCountsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testLedger()
		now := epoch
		for first := range uint64(rapid.IntRange(1, 20).Draw(t, "traces")) {
			r, err := l.maker.request(first, now, rapid.IntRange(1, spansOfTrace).Draw(t, "spans"))
			if err != nil {
				t.Fatal(err)
			}
			l.sent(r, outcome(rapid.IntRange(0, 2).Draw(t, "outcome")), now)
		}
		for round := 0; len(l.waiting) > 0; round++ {
			if round > 1000 {
				t.Fatalf("%d traces are never forgotten", len(l.waiting))
			}
			now = now.Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "seconds")) * time.Second)
			ids, _, _ := l.due(now)
			var rows []Span
			for _, id := range ids {
				e := l.waiting[id]
				for _, s := range l.maker.spans(e.number, e.start, e.spans) {
					for range rapid.IntRange(0, 2).Draw(t, "rows") {
						rows = append(rows, s)
					}
				}
			}
			l.found(ids, rows, now, now)
		}
		r := l.close()
		if r.Sent != r.Acknowledged+r.Refused+r.Unanswered || r.Acknowledged != r.Stored+r.Lost+r.Unverified || r.Unverified != 0 || r.Damaged != 0 {
			t.Fatalf("counts do not add up: %+v", r)
		}
	})
}

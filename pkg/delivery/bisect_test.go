package delivery_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
)

// shard is a table that refuses some rows, and takes each row at most once per
// token.
type shard struct {
	poison   map[int]bool
	stored   map[int]int
	tokens   map[string]bool
	accepted int64
	singles  int   // rows that were refused alone since anything was taken
	most     int   // of singles
	diverted []int // what the machine diverted
}

// bisect has a machine store a block of so many rows whose insert was refused. It
// returns false when the machine gives the block up.
func (s *shard) bisect(t interface{ Fatalf(string, ...any) }, rows int) (stored bool) {
	unique := 0
	m := delivery.NewMachine(delivery.Partition{Topic: "spans", Shards: 1, Unique: func() string { unique++; return string(rune(unique)) }})
	at := delivery.Moment{Time: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	notes, action := m.Start(at)
	batch := delivery.Batch{}
	for range 100 * (rows + 10) {
		for _, note := range notes {
			switch n := note.(type) {
			case delivery.Divert:
				for _, r := range n.Refused {
					s.diverted = append(s.diverted, r.Row)
				}
			case delivery.Stored:
				return true
			}
		}
		e := delivery.Event{Epoch: -1}
		switch a := action.(type) {
		case delivery.ReadPosition:
			e.Metadata = "metaflow at=0"
		case delivery.ReadBounds:
			e.End = 1
		case delivery.Fetch:
			e.Next, e.End, e.Due = 1, 1, true
			batch.Rows = rows
		case delivery.LookUp:
			if a.Rows == nil {
				for i := range rows {
					a.Rows = append(a.Rows, i)
				}
			}
			for _, row := range a.Rows {
				if s.stored[row] == 0 {
					e.Missing = append(e.Missing, row)
				}
			}
		case delivery.Load:
			e.Rows = rows
		case delivery.Insert:
			if a.Rows == nil || slices.ContainsFunc(a.Rows, func(row int) bool { return s.poison[row] }) {
				e.Outcome, e.Err = delivery.Refused, errors.New("constraint violated")
				if len(a.Rows) == 1 {
					s.singles++
					s.most = max(s.most, s.singles)
				}
				break
			}
			s.singles = 0
			s.accepted++
			if !s.tokens[a.Token] {
				s.tokens[a.Token] = true
				for _, row := range a.Rows {
					s.stored[row]++
				}
			}
		case delivery.Wait:
			return false
		case delivery.Stop:
			t.Fatalf("the machine stops: %v", a.Err)
		}
		e.Batch, at.Accepted = batch, s.accepted
		notes, action = m.Step(at, e)
	}
	t.Fatalf("the machine does not come to an end")
	return false
}

func newShard(poison map[int]bool) *shard {
	return &shard{poison: poison, stored: map[int]int{}, tokens: map[string]bool{}}
}

// Whatever rows of a block are bad, these are diverted and all others are stored
// once, unless all of them are bad: then none is diverted.
func TestBisectionFindsTheRefusedRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.IntRange(1, 300).Draw(t, "rows")
		poison := map[int]bool{}
		for _, row := range rapid.SliceOfN(rapid.IntRange(0, rows-1), 1, 300).Draw(t, "poison") {
			poison[row] = true
		}
		s := newShard(poison)
		stored := s.bisect(t, rows)
		if want := len(poison) < rows; stored != want {
			t.Fatalf("stored: %v, with %d of %d rows bad", stored, len(poison), rows)
		}
		slices.Sort(s.diverted)
		var bad []int
		for row := range rows {
			switch {
			case !poison[row] && s.stored[row] != 1:
				t.Fatalf("row %d is stored %d times", row, s.stored[row])
			case poison[row] && stored:
				bad = append(bad, row)
			}
		}
		if diff := cmp.Diff(bad, s.diverted); diff != "" {
			t.Fatalf("diverted (-want +got):\n%s", diff)
		}
	})
}

// A table that refuses everything is found out after 64 rows, not after all. One
// that takes some rows is asked again after each 64 that it refuses in a row.
func TestBisectionDoubtsTheTable(t *testing.T) {
	all := map[int]bool{}
	for row := range 1000 {
		all[row] = true
	}
	s := newShard(all)
	if s.bisect(t, 1000) || s.most != 64 {
		t.Errorf("the table was doubted after %d rows", s.most)
	}
	delete(all, 0) // it is the first to be tried
	s = newShard(all)
	if !s.bisect(t, 1000) || s.most != 64 || len(s.diverted) != 999 {
		t.Errorf("the table was asked again after %d rows, and %d were diverted", s.most, len(s.diverted))
	}
}

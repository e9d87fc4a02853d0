package delivery

import (
	"encoding/binary"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// sent is a record of some content, written at a time after the epoch.
func sent(content byte, after time.Duration, size int) *Record {
	value := make([]byte, size)
	value[0] = content
	return &Record{Time: epoch.Add(after), Value: value}
}

func TestDuplicate(t *testing.T) {
	const kib = 1 << 10
	tests := map[string]struct {
		log  []*Record
		want []bool
	}{
		"different contents":           {[]*Record{sent(1, 0, 10), sent(2, 0, 10)}, []bool{false, false}},
		"sent twice":                   {[]*Record{sent(1, 0, 10), sent(1, time.Second, 10)}, []bool{false, true}},
		"sent again just in time":      {[]*Record{sent(1, 0, 10), sent(1, time.Minute, 10)}, []bool{false, true}},
		"sent again too late":          {[]*Record{sent(1, 0, 10), sent(1, time.Minute+time.Millisecond, 10)}, []bool{false, false}},
		"a gateway's clock is behind":  {[]*Record{sent(1, time.Second, 10), sent(1, 0, 10)}, []bool{false, true}},
		"every copy renews the window": {[]*Record{sent(1, 0, 10), sent(1, 50*time.Second, 10), sent(1, 100*time.Second, 10)}, []bool{false, true, true}},
		"too much log in between":      {[]*Record{sent(1, 0, 10), sent(2, 0, 200*kib), sent(1, 0, 10)}, []bool{false, false, false}},
		"just so much log in between":  {[]*Record{sent(1, 0, 60*kib), sent(2, 0, 40*kib), sent(1, 0, 60*kib)}, []bool{false, false, true}},
		"a clock far off does no harm": {[]*Record{sent(1, 0, 10), sent(2, 1e6*time.Hour, 10), sent(1, time.Second, 10)}, []bool{false, false, true}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := NewWindow(WindowLimits{Age: time.Minute, Bytes: 100 * kib})
			for i, r := range tc.log {
				if got := w.Duplicate(r); got != tc.want[i] {
					t.Errorf("record %d: duplicate %v, want %v", i, got, tc.want[i])
				}
			}
		})
	}
}

func drawLog(t *rapid.T) []*Record {
	var log []*Record
	for range rapid.IntRange(0, 200).Draw(t, "records") {
		log = append(log, sent(
			byte(rapid.IntRange(0, 30).Draw(t, "content")),
			time.Duration(rapid.IntRange(0, 200).Draw(t, "time"))*time.Second,
			rapid.IntRange(1, 20_000).Draw(t, "size")))
	}
	return log
}

// The window agrees with its definition, spelled out: some earlier record of
// equal content within the age and the bytes. Of several, the latest counts.
func TestDuplicateMatchesDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := WindowLimits{Age: time.Minute, Bytes: 100_000}
		w := NewWindow(limits)
		log := drawLog(t)
		starts := make([]int64, len(log)+1)
		for i, r := range log {
			starts[i+1] = starts[i] + max(int64(len(r.Value)), MinRecordBytes)
			want := false
			for j := i - 1; j >= 0; j-- {
				if log[j].ContentHash() == r.ContentHash() {
					want = starts[i]-starts[j] <= limits.Bytes && r.Time.Sub(log[j].Time).Abs() <= limits.Age
					break
				}
			}
			if got := w.Duplicate(r); got != want {
				t.Fatalf("record %d: duplicate %v, want %v", i, got, want)
			}
		}
	})
}

// A writer that takes over and reads only the last Limits.Bytes of the log
// judges all that follows as one that has read the log from its beginning.
func TestTakeover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := WindowLimits{Age: time.Minute, Bytes: 100_000}
		log := drawLog(t)
		at := rapid.IntRange(0, len(log)).Draw(t, "takeover")
		first := at
		for n := int64(0); first > 0 && n <= limits.Bytes; first-- {
			n += max(int64(len(log[first-1].Value)), MinRecordBytes)
		}
		whole, tail := NewWindow(limits), NewWindow(limits)
		for i, r := range log {
			want := whole.Duplicate(r)
			if i < first {
				continue
			}
			if got := tail.Duplicate(r); i >= at && got != want {
				t.Fatalf("record %d: duplicate %v after the takeover at %d, %v before", i, got, at, want)
			}
		}
	})
}

// Tiny records count as 4 KiB of log, so they do not make the window grow without
// bound. Writers of several versions must agree on the number: it decides which
// records are copies.
func TestTinyRecordsAreBounded(t *testing.T) {
	limits := WindowLimits{Age: time.Hour, Bytes: 1 << 20}
	w := NewWindow(limits)
	tiny := func(i int) *Record { return &Record{Time: epoch, Value: binary.BigEndian.AppendUint64(nil, uint64(i))} }
	for i := range 100_000 {
		w.Duplicate(tiny(i))
	}
	if n := w.Len(); n != 257 {
		t.Errorf("%d records of 4 KiB each are remembered in 1 MiB", n)
	}
	w = NewWindow(limits)
	for i := range 256 {
		w.Duplicate(tiny(i))
	}
	if !w.Duplicate(tiny(0)) {
		t.Error("a copy was forgotten after 1 MiB")
	}
	for i := range 256 {
		w.Duplicate(tiny(1000 + i))
	}
	if w.Duplicate(tiny(0)) {
		t.Error("a copy was recognized after more than 1 MiB")
	}
}

// What a window can hold lies after its reach: also when each record is tiny, and
// every other offset is without one.
func TestReach(t *testing.T) {
	limits := WindowLimits{Age: time.Hour, Bytes: 1 << 20}
	if got, want := limits.Reach(1000), int64(1000-2*257); got != want {
		t.Errorf("Reach(1000) = %d, want %d", got, want)
	}
}

func BenchmarkDuplicate(b *testing.B) {
	w := NewWindow(WindowLimits{Age: 10 * time.Minute, Bytes: 256 << 20})
	r := &Record{Time: epoch, Value: make([]byte, 40<<10)}
	r.Meta.HasHash = true
	var n uint64
	b.ReportAllocs()
	for b.Loop() {
		n++
		binary.BigEndian.PutUint64(r.Meta.Hash[:], n*0x9e3779b97f4a7c15)
		w.Duplicate(r)
	}
}

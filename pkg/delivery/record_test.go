package delivery

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMetaRoundTrip(t *testing.T) {
	tests := map[string]Meta{
		"nothing": {},
		"all":     {Agent: "node-1", Received: time.Unix(1, 2), Hash: HashOf([]byte("x")), HasHash: true, Resend: true},
		"agent":   {Agent: "node-1"},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			var got Meta
			for _, h := range want.Headers() {
				got.Set(h.Key, h.Value)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Anybody may write to the topic: a header of a wrong size is as good as none.
func TestMetaIgnoresStrangeHeaders(t *testing.T) {
	var got Meta
	for _, key := range []string{"metaflow-hash", "metaflow-received", "metaflow-resend", "traceparent"} {
		for _, size := range []int{0, 3, 7, 9, 12, 15, 17, 32} {
			got.Set(key, bytes.Repeat([]byte{1}, size))
		}
	}
	if diff := cmp.Diff(Meta{}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The headers are stored data: two versions of the program must agree on them.
func TestHeadersAreForever(t *testing.T) {
	m := Meta{Agent: "node-1", Received: time.Unix(0, 0x0102030405060708), Hash: HashOf([]byte("metaflow")), HasHash: true, Resend: true}
	want := []Header{
		{"metaflow-hash", m.Hash[:]},
		{"metaflow-received", []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"metaflow-agent", []byte("node-1")},
		{"metaflow-resend", []byte("1")},
	}
	if diff := cmp.Diff(want, m.Headers()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The hash is stored data: two versions of the program must agree on it.
func TestHashIsForever(t *testing.T) {
	got := HashOf([]byte("metaflow"))
	want := Hash{0x2d, 0x7d, 0xc3, 0xaa, 0xbb, 0x67, 0x9d, 0x06, 0xa2, 0x70, 0xb4, 0x65, 0x2e, 0xbd, 0xe9, 0xe0}
	if got != want {
		t.Errorf("HashOf = %#v", got)
	}
}

func TestDeadLetterRoundTrip(t *testing.T) {
	want := DeadLetter{
		Cause: "malformed protobuf", Topic: "metaflow.spans", Partition: 3, Offset: 1 << 40, Truncated: 7,
		Meta: Meta{Agent: "node-1", Received: time.Unix(1, 2), Resend: true},
	}
	var got DeadLetter
	for _, h := range want.Headers() {
		got.Set(h.Key, h.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What is judged by time is judged by the first receipt that somebody has seen on a clock.
func TestFirstReceipt(t *testing.T) {
	sent, stamped := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		header, kafka time.Time
		want          time.Time // zero: unknown
	}{
		"a spooled request":            {sent, stamped, sent},
		"no header":                    {time.Time{}, stamped, stamped},
		"no header, no timestamp":      {time.Time{}, time.UnixMilli(-1), time.Time{}},
		"no header, a timestamp of 0":  {time.Time{}, time.UnixMilli(0), time.Time{}},
		"a timestamp in seconds":       {time.Time{}, time.UnixMilli(stamped.Unix()), time.Time{}},
		"a timestamp in microseconds":  {time.Time{}, time.UnixMilli(stamped.UnixMicro()), time.Time{}},
		"a header of 0":                {time.Unix(0, 0), stamped, stamped},
		"a header and no timestamp":    {sent, time.UnixMilli(0), sent},
		"a header in the wrong unit":   {time.Unix(0, stamped.UnixMilli()), stamped, stamped},
		"neither header nor timestamp": {time.Unix(0, 0), time.UnixMilli(0), time.Time{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := Record{Time: tc.kafka, Meta: Meta{Received: tc.header}}
			got, ok := r.FirstReceipt()
			if !got.Equal(tc.want) || ok == tc.want.IsZero() {
				t.Errorf("FirstReceipt = %v, %v; want %v", got, ok, tc.want)
			}
		})
	}
}

package record_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/record"
)

func TestMetaRoundTrip(t *testing.T) {
	tests := map[string]record.Meta{
		"nothing": {},
		"all":     {Agent: "node-1", Received: time.Unix(1, 2), Hash: record.HashOf([]byte("x")), HasHash: true, Resend: true},
		"agent":   {Agent: "node-1"},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			var got record.Meta
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
	var got record.Meta
	for _, key := range []string{"metaflow-hash", "metaflow-received", "metaflow-resend", "traceparent"} {
		got.Set(key, []byte("odd"))
		got.Set(key, nil)
	}
	if diff := cmp.Diff(record.Meta{}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The hash is stored data: two versions of the program must agree on it.
func TestHashIsForever(t *testing.T) {
	got := record.HashOf([]byte("metaflow"))
	want := record.Hash{0x2d, 0x7d, 0xc3, 0xaa, 0xbb, 0x67, 0x9d, 0x06, 0xa2, 0x70, 0xb4, 0x65, 0x2e, 0xbd, 0xe9, 0xe0}
	if got != want {
		t.Errorf("HashOf = %#v", got)
	}
}

func TestDeadLetterRoundTrip(t *testing.T) {
	want := record.DeadLetter{
		Cause: "malformed protobuf", Topic: "metaflow.spans", Partition: 3, Offset: 1 << 40, Truncated: 7,
		Meta: record.Meta{Agent: "node-1", Received: time.Unix(1, 2), Resend: true},
	}
	var got record.DeadLetter
	for _, h := range want.Headers() {
		got.Set(h.Key, h.Value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

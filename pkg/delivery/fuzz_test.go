package delivery_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/schema"
)

// Anybody may commit any metadata. What is taken for a commit of ours ends behind the
// offset, and says the same again when it is written.
func FuzzParseCommit(f *testing.F) {
	for _, c := range []delivery.Commit{
		{}, {Topic: "id"}, {Unsure: 9}, {Topic: "id", Unsure: 9, Plan: delivery.Plan{To: 7, First: -1, Shard: 2}}, {Plan: delivery.Plan{To: 7, Joined: true}},
	} {
		f.Add(int64(5), c.Metadata(5))
	}
	f.Add(int64(0), "metaflow/2 to=4 first=3 shard=1 apart")
	f.Add(int64(0), "metaflow/1 to=4")
	f.Fuzz(func(t *testing.T, from int64, metadata string) {
		c, ok, err := delivery.ParseCommit(from, metadata)
		if (err != nil || !ok) && !reflect.DeepEqual(c, delivery.Commit{}) {
			t.Fatalf("not a commit of ours, and %+v", c)
		}
		if err != nil || !ok || from < 0 {
			return
		}
		if c.Plan.To != 0 && c.Plan.To <= from {
			t.Fatalf("the plan %+v ends before %d", c.Plan, from)
		}
		if c.Plan.Shard < 0 { // of the oldest version, which is not written any more
			return
		}
		again, ok, err := delivery.ParseCommit(from, c.Metadata(from))
		if diff := cmp.Diff(c, again); err != nil || !ok || diff != "" {
			t.Errorf("written and read again: %v, %v\n%s", ok, err, diff)
		}
	})
}

// A header never makes a record unreadable, and a letter keeps what it said.
func FuzzHeaders(f *testing.F) {
	keys := []string{
		schema.HeaderAgent, schema.HeaderReceived, schema.HeaderHash, schema.HeaderResend,
		schema.HeaderCause, schema.HeaderTopic, schema.HeaderPartition, schema.HeaderOffset, schema.HeaderTruncated,
	}
	for _, key := range keys {
		f.Add(key, []byte("12345678"))
	}
	f.Add(schema.HeaderHash, make([]byte, 16))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		var d delivery.DeadLetter
		d.Set(key, value)
		d.Meta.HasHash, d.Meta.Hash = false, delivery.Hash{} // a letter leaves it out
		r := delivery.Record{Time: time.Unix(0, 0), Meta: d.Meta}
		if at, ok := r.FirstReceipt(); ok && !delivery.Believable(at) {
			t.Errorf("received at %v", at)
		}
		var again delivery.DeadLetter
		for _, h := range d.Headers() {
			again.Set(h.Key, h.Value)
		}
		if d.Truncated < 0 {
			again.Truncated = d.Truncated // it is not written
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Errorf("written and read again (-want +got):\n%s", diff)
		}
	})
}

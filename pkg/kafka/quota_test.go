package kafka_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// A broker with an exhausted quota answers a fetch at once with a wait time and no
// records, and reads nothing from the connection meanwhile.
func TestQuotaIsWaitedOut(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 1)
	if err := startProducer(t, client, kafka.ProducerOptions{}).Produce(t.Context(), numbered(0, "a", 3)); err != nil {
		t.Fatal(err)
	}
	const throttle = 300 * time.Millisecond
	var refusals, fetches atomic.Int32
	cluster.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		fetches.Add(1)
		if refusals.Add(-1) < 0 {
			return nil, nil, false
		}
		res := req.ResponseKind().(*kmsg.FetchResponse)
		res.ThrottleMillis = int32(throttle.Milliseconds())
		return res, nil, true
	})
	claim := startMember(t, client, nil).await(1)[0]

	// The log is still unknown, so fetch waits for the broker's response.
	refusals.Store(2)
	begun := time.Now()
	b, err := claim.Fetch(t.Context(), 0, 1<<20, 10*time.Millisecond)
	if diff := cmp.Diff([]string{"a-0", "a-1", "a-2"}, values(b.Records)); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s%v", diff, err)
	}
	if took := time.Since(begun); took < 2*throttle {
		t.Errorf("fetch took %s, but the quota was exhausted for %s", took, 2*throttle)
	}
	if b.Throttled {
		t.Error("a response with records is marked as throttled")
	}

	// Later, a caller with a shorter wait gets an empty batch marked as throttled: the
	// records exist.
	refusals.Store(1)
	fetches.Store(0)
	begun = time.Now()
	for empty := 0; ; empty++ {
		b, err := claim.Fetch(t.Context(), 0, 1<<20, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if b.HighWatermark != 3 {
			t.Errorf("HighWatermark = %d, want 3", b.HighWatermark)
		}
		if empty := len(b.Records) == 0; b.Throttled != empty || empty && b.Next != 0 {
			t.Errorf("a batch of %d records has Throttled = %t and Next = %d", len(b.Records), b.Throttled, b.Next)
		}
		if len(b.Records) > 0 {
			if took := time.Since(begun); took < throttle || empty == 0 {
				t.Errorf("records came after %s and %d times of nothing; the quota was exhausted for %s", took, empty, throttle)
			}
			break
		}
	}
	if n := fetches.Load(); n != 2 {
		t.Errorf("%d requests were sent, want one that is refused and one that is not", n)
	}

	// An empty response at the end of the log is not marked as throttled.
	b, err = claim.Fetch(t.Context(), 3, 1<<20, 10*time.Millisecond)
	if err != nil || len(b.Records) != 0 || b.Throttled {
		t.Errorf("at the end of the log: %d records, Throttled = %t, %v", len(b.Records), b.Throttled, err)
	}
}

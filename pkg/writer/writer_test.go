package writer_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

func config() writer.Config {
	cfg := writer.DefaultConfig()
	cfg.MaxBatchRows = 20
	return cfg
}

func newWriter(t interface{ Fatal(...any) }, store *table, dead writer.DeadLetters) *writer.Writer {
	w, err := writer.New(config(), store.sample.of, store, store, dead, writer.Options{
		AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour, Grace: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// follow runs a writer over the log until it has committed all of it, or has
// crashed, or has not come to an end in the (virtual) time given.
func follow(w *writer.Writer, log *partitionLog, within time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.Handle(ctx, log)
	}()
	for {
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond):
			if log.finished() {
				cancel()
				<-done
				return
			}
		}
	}
}

// stored is what a table holds that has each of these spans once.
func stored(numbers ...int) map[string]int {
	spans := map[string]int{}
	for _, n := range numbers {
		spans[spanID(n)] = 1
	}
	return spans
}

func TestBatchIsPlannedInsertedAndCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		log.append(time.Now(), request(time.Now(), 1, 2), false)
		log.append(time.Now(), request(time.Now(), 3), false)
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff([]string{"0 metaflow/3 at=0 to=2 first=946684800000 shard=1", "2 metaflow at=2"}, log.commits); diff != "" {
			t.Errorf("commits (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]bool{"metaflow.spans/3/0-2@946684800000": true}, store.tokens); diff != "" {
			t.Errorf("tokens (-want +got):\n%s", diff)
		}
		want := map[string]int{spanID(1): 1, spanID(2): 1, spanID(3): 1}
		if diff := cmp.Diff(want, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// The dead writer had inserted its range and not committed it: the next owner
// inserts the very same range, whatever has come since.
func TestTakeoverFinishesThePlannedRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 5 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.offset, log.metadata = 1, "metaflow/1 to=3"
		store.tokens["metaflow.spans/3/1-3"] = true // and it did store it
		store.spans[spanID(1)], store.spans[spanID(2)] = 1, 1
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		want := map[string]int{spanID(1): 1, spanID(2): 1, spanID(3): 1, spanID(4): 1}
		if diff := cmp.Diff(want, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"3 metaflow at=3", "3 metaflow/3 at=3 to=5 first=946684800000 shard=1", "5 metaflow at=5"}, log.commits); diff != "" {
			t.Errorf("commits (-want +got):\n%s", diff)
		}
	})
}

// A plan of a version that this writer does not know may mean anything: it
// must wait for an operator rather than store a range twice.
func TestUnknownPlanStopsThePartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		log.append(time.Now(), request(time.Now(), 1), false)
		log.offset, log.metadata = 0, "metaflow/4 rows=1"
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if store.inserts > 0 || len(log.commits) > 0 {
			t.Errorf("%d inserts, commits %v", store.inserts, log.commits)
		}
	})
}

func TestClickHouseAwayForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 100 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		store.broken = errors.New("connection refused")
		time.AfterFunc(3*time.Hour, func() {
			store.mu.Lock()
			defer store.mu.Unlock()
			store.broken = nil
		})
		follow(newWriter(t, store, &letters{}), log, 4*time.Hour)
		if len(store.spans) != 100 {
			t.Errorf("%d spans stored", len(store.spans))
		}
		// The longest pause between attempts is 5 s.
		if store.inserts > 3*3600/5+50 {
			t.Errorf("%d attempts in three hours", store.inserts)
		}
	})
}

// An insert under way gets the grace, but none in which the partition is
// somebody else's.
func TestGraceEndsWithTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		store.hangs = true
		log.append(time.Now(), request(time.Now(), 1), false)
		begun := time.Now()
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if took := time.Since(begun) - time.Minute; took != log.Grace() {
			t.Errorf("the writer went on for %s, the claim for %s", took, log.Grace())
		}
	})
}

func TestRefusedRowsAreDiverted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		log.append(time.Now(), request(time.Now(), 1, 2, 3), false)
		log.append(time.Now(), []byte("garbage"), false)
		log.append(time.Now(), request(time.Now(), 4, 5, 6), false)
		log.append(time.Now(), request(time.Now().Add(-48*time.Hour), 7, 8), false)
		store.poison[spanID(2)], store.poison[spanID(6)] = true, true
		follow(newWriter(t, store, dead), log, time.Minute)
		want := map[string]int{spanID(1): 1, spanID(3): 1, spanID(4): 1, spanID(5): 1}
		if diff := cmp.Diff(want, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		causes := map[string]int{}
		for _, l := range dead.all {
			causes[fmt.Sprint(l.Offset, " ", l.Cause)]++
		}
		wantCauses := map[string]int{
			"0 insert rows of metaflow.spans/3/0-4@946684800000: constraint violated": 1,
			"1 malformed protobuf": 1,
			"2 insert rows of metaflow.spans/3/0-4@946684800000: constraint violated": 1,
			"3 2 spans refused for their start_time":                                  1,
		}
		if diff := cmp.Diff(wantCauses, causes); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
	})
}

// Other programs write to the topics too: a text that is not UTF-8 costs none of a record's items.
func TestBadTextsCostNoItem(t *testing.T) {
	for name, tc := range map[string]struct {
		of   *sample
		body func(time.Time, ...int) []byte
		bad  []byte
		want map[string]int
	}{
		"spans": {&traces, request, []byte{0x0a, 3, 0x1a, 1, 0xff}, map[string]int{spanID(1): 1, spanID(2): 1}},
		"flows": {&flows, flowRequest, []byte{0x12, 1, 0xff}, map[string]int{flowID(1): 1, flowID(2): 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store, dead := newLogOf(tc.of), newTableOf(tc.of), &letters{}
				log.append(time.Now(), append(tc.body(time.Now(), 1, 2), tc.bad...), false)
				follow(newWriter(t, store, dead), log, time.Minute)
				if diff := cmp.Diff(tc.want, store.spans); diff != "" || len(dead.all) > 0 {
					t.Errorf("%d dead letters, items (-want +got):\n%s", len(dead.all), diff)
				}
			})
		})
	}
}

// A flow that ClickHouse refuses, and one that no gateway would have accepted.
func TestRefusedFlowsAreDiverted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLogOf(&flows), newTableOf(&flows), &letters{}
		log.append(time.Now(), flowRequest(time.Now(), 1, 2, 3), false)
		log.append(time.Now(), flowRequest(time.Now().Add(-48*time.Hour), 7), false)
		store.poison[flowID(2)] = true
		follow(newWriter(t, store, dead), log, time.Minute)
		if diff := cmp.Diff(map[string]int{flowID(1): 1, flowID(3): 1}, store.spans); diff != "" {
			t.Errorf("flows (-want +got):\n%s", diff)
		}
		causes := map[string]int{}
		for _, l := range dead.all {
			causes[fmt.Sprint(l.Topic, " ", l.Offset, " ", l.Cause)]++
		}
		want := map[string]int{
			"metaflow.flows 0 insert rows of metaflow.flows/3/0-2@946684800000: constraint violated": 1,
			"metaflow.flows 1 flow refused for its start_time":                                       1,
		}
		if diff := cmp.Diff(want, causes); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
	})
}

// The table is mended when pieces of a refused block are stored already: the
// whole would be accepted now, and must not be tried.
func TestMendedAfterTheFirstPiece(t *testing.T) {
	for name, outcome := range map[string]string{"same writer": "fails", "after a crash": "crash"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store, dead := newLog(), newTable(), &letters{}
				log.append(time.Now(), request(time.Now(), 1, 2, 3, 4), false)
				store.poison[spanID(3)] = true
				// The whole and all rows are refused, spans 1 and 4 are stored, the rest is not.
				store.outcome = []string{"", "", "", outcome, "mended"}
				w := newWriter(t, store, dead)
				follow(w, log, time.Minute)
				follow(w, log, time.Minute)
				if diff := cmp.Diff(stored(1, 2, 3, 4), store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// Retention deletes records of a block of which pieces are stored. What is left
// makes other pieces, of which some spans are stored already.
func TestRetentionWhileBisecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		for i := range 4 {
			log.append(time.Now(), request(time.Now(), 2*i, 2*i+1), false)
		}
		store.poison[spanID(0)] = true
		store.outcome = append(store.outcome, "", "", "", "")
		for range 20 { // some pieces are stored, the others wait
			store.outcome = append(store.outcome, "fails")
		}
		time.AfterFunc(20*time.Second, func() {
			log.mu.Lock()
			defer log.mu.Unlock()
			log.start = 1
		})
		follow(newWriter(t, store, dead), log, time.Hour)
		if log.offset != 4 {
			t.Errorf("committed %d", log.offset)
		}
		delete(store.spans, spanID(1)) // gone from the log, perhaps stored before
		if diff := cmp.Diff(stored(2, 3, 4, 5, 6, 7), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// A topic that is deleted and created again has the same offsets again, and
// ClickHouse remembers the tokens of the first.
func TestTopicIsCreatedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		for i := range 2 {
			log := newLog()
			log.append(time.Now(), request(time.Now(), i), false)
			follow(newWriter(t, store, &letters{}), log, time.Minute)
		}
		if diff := cmp.Diff(stored(0, 1), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// The log lost its end and got another: what was planned is not there any more.
func TestPlanOfRecordsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 3 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.offset, log.metadata = 1, "metaflow/2 to=2 first=1234567 shard=1"
		store.tokens["metaflow.spans/3/1-2@1234567"] = true
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff(stored(1, 2), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// A range that was planned for one shard is finished there, whatever shards
// have come since.
func TestShardOfThePlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 3 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.trouble["commit"] = []error{nil, errCrash} // planned and inserted, but not committed
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if log.metadata == "" || len(store.tokens) != 1 {
			t.Fatalf("metadata %q, tokens %v: it should have stopped in between", log.metadata, store.tokens)
		}
		shards := store.shards
		store.shards = 1
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if log.metadata == "" || len(store.tokens) != 1 {
			t.Fatalf("metadata %q, tokens %v: it should have waited for the shard", log.metadata, store.tokens)
		}
		store.shards = 2 * shards
		log.append(time.Now(), request(time.Now(), 3), false)
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff(stored(0, 1, 2, 3), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		shardsOf := map[int]int{}
		for _, shard := range store.at {
			shardsOf[shard]++
		}
		if diff := cmp.Diff(map[int]int{1: 1, 3: 1}, shardsOf); diff != "" {
			t.Errorf("blocks by shard (-want +got):\n%s", diff)
		}
	})
}

// A shard that is away does not stop the partitions of the other one, whether
// they are behind or not.
func TestShardsDoNotStopEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		store.away = map[int]bool{0: true}
		cfg := config()
		cfg.MaxBatch, cfg.FetchBytes = 1<<20, 128<<10
		cfg.MemoryBytes = 4 << 20 // two slots, and two fetches
		w, err := writer.New(cfg, columns.TracesTable(), store, store, &letters{}, writer.Options{AcceptPast: 24 * time.Hour, Grace: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		var logs []*partitionLog
		for n := range 8 {
			log := newLog()
			log.number = n
			for i := range 10 {
				log.append(time.Now(), request(time.Now(), 100*n+i), false)
			}
			logs = append(logs, log)
			running.Go(func() { _ = w.Handle(ctx, log) })
			synctest.Wait() // the others have what they need by now
		}
		<-time.After(time.Minute)
		for n, log := range logs {
			log.mu.Lock()
			log.append(time.Now(), request(time.Now(), 100*n+10), false)
			log.mu.Unlock()
		}
		<-time.After(time.Minute)
		for n, log := range logs {
			log.mu.Lock()
			if want := int64(11 * (n % 2)); max(log.offset, 0) != want {
				t.Errorf("partition %d: committed %d, want %d", n, log.offset, want)
			}
			log.mu.Unlock()
		}
		cancel()
		running.Wait()
	})
}

// A letter that Kafka refuses goes without its value, and stops nobody.
func TestRefusedDeadLetterIsTruncated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{max: 500}
		log.append(time.Now(), []byte("garbage"), false)
		log.append(time.Now(), []byte(strings.Repeat("garbage", 100)), false)
		log.append(time.Now(), request(time.Now(), 1), false)
		follow(newWriter(t, store, dead), log, time.Minute)
		if diff := cmp.Diff(stored(1), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		got := map[string]int{}
		for _, l := range dead.all {
			got[fmt.Sprint(l.Offset, " ", l.Truncated, " ", l.Cause)]++
		}
		want := map[string]int{
			"0 0 malformed protobuf": 1,
			"1 700 malformed protobuf; the value is left out: 1 records are larger than the topic accepts (its max.message.bytes): message too large": 1,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
	})
}

// A batch of the log that nobody can read is noted and passed over.
func TestUnreadableBatchIsDiverted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		for i := range 6 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.corrupt = &kafka.CorruptError{Offset: 2, Next: 4, Cause: errors.New("wrong checksum")}
		follow(newWriter(t, store, dead), log, time.Minute)
		want := map[string]int{spanID(0): 1, spanID(1): 1, spanID(4): 1, spanID(5): 1}
		if diff := cmp.Diff(want, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		if len(dead.all) != 1 || dead.all[0].Offset != 2 {
			t.Errorf("dead letters %+v", dead.all)
		}
	})
}

// When every row is refused, the table is at fault, which somebody may mend:
// nothing is diverted.
func TestBrokenTableDivertsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		log.append(time.Now(), request(time.Now(), 1, 2, 3), false)
		store.broken = fault.As(fault.Rejected, errors.New("constraint violated"))
		time.AfterFunc(time.Hour, func() {
			store.mu.Lock()
			defer store.mu.Unlock()
			store.broken = nil
		})
		follow(newWriter(t, store, dead), log, 2*time.Hour)
		if len(dead.all) > 0 || len(store.spans) != 3 {
			t.Errorf("%d dead letters, %d spans stored", len(dead.all), len(store.spans))
		}
	})
}

// Retention that is shorter than an outage deletes what nobody has read: the
// writer says so and goes on.
func TestLogDeletedBeforeItWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 6 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.offset, log.start = 1, 4
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff(map[string]int{spanID(4): 1, spanID(5): 1}, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// Kafka may lose the end of its log when no replica in sync is left. A batch
// with records of that end is forgotten: it could not be formed again after a crash.
func TestLogLosesItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		log.offset, log.metadata, log.growing = -1, "", true
		time.AfterFunc(time.Second/2, func() { // there is nothing yet when the writer begins
			log.mu.Lock()
			defer log.mu.Unlock()
			log.append(time.Now(), request(time.Now(), 1), false)
			log.append(time.Now(), request(time.Now(), 2), false)
			log.growing = false
		})
		log.faults = []string{"", "", "lost end"} // while the two wait for more
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		log.append(time.Now(), request(time.Now(), 7), false)
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff(stored(7), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// A question about the log that fails does not move the offset to read next.
func TestOutOfRangeWhileKafkaIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		begin := time.Now()
		for i := range 3 {
			log.append(begin.Add(time.Duration(i)*time.Hour), request(begin, i), false)
		}
		w := newWriter(t, store, &letters{})
		follow(w, log, time.Minute)
		log.append(begin.Add(3*time.Hour), request(begin, 3), false)
		log.faults = []string{"", "", "out of range"}
		log.trouble["bounds"] = []error{nil, errors.New("connection refused")}
		follow(w, log, time.Minute)
		if diff := cmp.Diff(stored(0, 1, 2, 3), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// A leader of a moment ago does not know yet how far the log goes. What it does
// not show is not gone.
func TestPlannedRangeBehindAStaleLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 6 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.offset, log.metadata = 0, "metaflow/1 to=6"
		log.faults = []string{"", "stale leader", "stale leader"}
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff(stored(0, 1, 2, 3, 4, 5), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

func TestCopies(t *testing.T) {
	tests := map[string]struct {
		later  time.Duration
		resend bool
		items  []int // of the second request
		want   map[int]int
	}{
		"the same request at once":                {0, false, []int{1, 2}, map[int]int{1: 1, 2: 1}},
		"the same request hours later":            {3 * time.Hour, false, []int{1, 2}, map[int]int{1: 2, 2: 2}},
		"hours later, and the agent says so":      {3 * time.Hour, true, []int{1, 2}, map[int]int{1: 1, 2: 1}},
		"cut differently, and the agent says so":  {0, true, []int{2, 3}, map[int]int{1: 1, 2: 1, 3: 1}},
		"resent without ever having been stored":  {0, true, []int{8, 9}, map[int]int{1: 1, 2: 1, 8: 1, 9: 1}},
		"another request that has the same items": {0, false, []int{2, 1}, map[int]int{1: 2, 2: 2}},
	}
	for name, tc := range tests {
		for of, sample := range samples {
			t.Run(of+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					log, store := newLogOf(sample), newTableOf(sample)
					begin := time.Now()
					log.append(begin, sample.request(begin, 1, 2), false)
					log.append(begin.Add(tc.later), sample.request(begin, tc.items...), tc.resend)
					follow(newWriter(t, store, &letters{}), log, time.Minute)
					want := map[string]int{}
					for n, times := range tc.want {
						want[sample.id(n)] = times
					}
					if diff := cmp.Diff(want, store.spans); diff != "" {
						t.Errorf("stored (-want +got):\n%s", diff)
					}
				})
			})
		}
	}
}

// A record that is diverted whole and its replay have the same content. The replay is stored, once, also
// within the window. A copy that the client sends after it is dropped.
func TestReplayWithinTheWindow(t *testing.T) {
	for name, sample := range samples {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store, dead := newLogOf(sample), newTableOf(sample), &letters{}
				value := sample.request(time.Now(), 1)
				log.append(time.Now(), value, false)
				log.append(time.Now(), sample.request(time.Now(), 2), false)
				store.poison[sample.id(1)] = true
				follow(newWriter(t, store, dead), log, 10*time.Minute)
				if len(dead.all) != 1 {
					t.Fatalf("%d dead letters", len(dead.all))
				}
				clear(store.poison) // the operator mends the table
				want := map[string]int{sample.id(1): 1, sample.id(2): 1}
				for _, resend := range []bool{true, true, false} {
					log.append(time.Now(), value, resend)
					follow(newWriter(t, store, dead), log, time.Minute)
					if diff := cmp.Diff(want, store.spans); diff != "" {
						t.Errorf("stored (-want +got):\n%s", diff)
					}
				}
			})
		})
	}
}

// Whoever takes over recognizes copies, whatever stands last in the log.
func TestCopiesAfterATakeover(t *testing.T) {
	tests := map[string]struct {
		away time.Duration // how long nobody was there
		last func(*partitionLog, time.Time)
	}{
		"an old record": {time.Hour, func(*partitionLog, time.Time) {}},
		"the ends of transactions": {time.Hour, func(log *partitionLog, at time.Time) {
			log.marks = map[int64]bool{}
			for range 30 {
				log.marks[log.end()] = true
				log.append(at, nil, false)
			}
		}},
		"a record of next year": {time.Minute, func(log *partitionLog, at time.Time) {
			log.append(at.Add(365*24*time.Hour), request(at.Add(365*24*time.Hour), 3), false)
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store := newLog(), newTable()
				begin := time.Now()
				log.append(begin, request(begin, 1, 2), false)
				tc.last(log, begin)
				follow(newWriter(t, store, &letters{}), log, time.Minute)
				log.offset = log.end()
				<-time.After(tc.away)
				log.append(begin.Add(time.Minute), request(begin, 1, 2), false)
				follow(newWriter(t, store, &letters{}), log, time.Minute)
				delete(store.spans, spanID(3))
				if diff := cmp.Diff(stored(1, 2), store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// noDeadline hides that a test has a deadline, which is real time and cannot
// be asked for where time is virtual. rapid then stops after a day of virtual
// time, which is some hundred checks: -count=50 -rapid.checks=300 runs more.
type noDeadline struct{ rapid.TB }

// The heart of the matter: whatever the log holds, wherever writers crash,
// whichever inserts fail or succeed without anybody hearing of it, in the end
// every span, and every flow, is stored exactly once or was diverted.
func TestExactlyOnce(t *testing.T) {
	for name, sample := range samples {
		t.Run(name, func(t *testing.T) { testExactlyOnce(t, sample) })
	}
}

func testExactlyOnce(t *testing.T, sample *sample) {
	request, spanID := sample.request, sample.id
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(noDeadline{t}, func(t *rapid.T) {
			log, store, dead := newLogOf(sample), newTableOf(sample), &letters{}
			want := map[string]int{}
			number := 0
			type sending struct {
				spans []int
				at    time.Time // of its last copy
			}
			var sent []*sending
			numbers := map[delivery.Hash][]int{} // of the items of a record
			kept := int64(math.MaxInt64)         // the log was never cut before this offset
			lost := map[string]bool{}            // items that were in records which the log has lost
			// Retention may take what nobody has read. Without copies, since it also takes
			// from the window what they are recognized by.
			shrinks := rapid.IntRange(0, 3).Draw(t, "shrinks") == 0
			begin := time.Now()
			at := begin
			for range rapid.IntRange(1, 25).Draw(t, "records") {
				at = at.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Second, 11 * time.Minute}).Draw(t, "later"))
				switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
				case kind == 0:
					log.append(at, fmt.Appendf(nil, "garbage %d", number), false)
				case kind <= 2 && len(sent) > 0 && !shrinks: // the client sends the same request again
					s := rapid.SampledFrom(sent).Draw(t, "copy")
					log.append(at, request(begin, s.spans...), false)
					if at.Sub(s.at) > writer.DefaultConfig().DedupWindow {
						for _, n := range s.spans { // too late to be recognized
							if !store.poison[spanID(n)] {
								want[spanID(n)]++
							}
						}
					}
					s.at = at
				case kind == 3 && len(sent) > 0: // the agent sends spans again
					s := rapid.SampledFrom(sent).Draw(t, "resend")
					if rapid.Bool().Draw(t, "in the same request") {
						log.append(at, request(begin, s.spans...), true)
						s.at = at
						break
					}
					log.append(at, request(begin, append([]int{number}, s.spans...)...), true)
					want[spanID(number)] = 1
					number++
				default:
					var spans []int
					for range rapid.IntRange(1, 8).Draw(t, "spans") {
						spans = append(spans, number)
						want[spanID(number)] = 1
						number++
					}
					// Not alone in its batch, lest the table seem to be at fault.
					if len(spans) > 1 && rapid.IntRange(0, 5).Draw(t, "poison") == 0 {
						store.poison[spanID(spans[0])] = true
						delete(want, spanID(spans[0]))
					}
					sent = append(sent, &sending{spans, at})
					log.append(at, request(begin, spans...), false)
				}
			}
			store.outcome = rapid.SliceOfN(rapid.SampledFrom([]string{"", "", "", "", "fails", "answer lost", "crash", "mended", "view fails", "token only", "runs on"}), 0, 30).Draw(t, "outcomes")
			faults := []string{"", "", "stale leader", "out of range", "throttled"}
			if shrinks {
				faults = append(faults, "retention")
			}
			faults = append(faults, "lost end")
			log.faults = rapid.SliceOfN(rapid.SampledFrom(faults), 0, 30).Draw(t, "faults")
			// The last replica in sync is lost, and others send.
			loseEnd := func(from int64, sent int) {
				if log.epoch < 0 && log.offset > 0 {
					return // nobody can tell that offset from one in the log as it was
				}
				for _, r := range log.records[from:] {
					for _, n := range numbers[r.Meta.Hash] {
						lost[spanID(n)] = true
					}
				}
				log.cut(from)
				kept = min(kept, from)
				for range sent {
					at = at.Add(time.Second)
					log.append(at, request(begin, number), false)
					want[spanID(number)] = 1
					numbers[log.records[log.end()-1].Meta.Hash] = []int{number}
					number++
				}
			}
			log.loseEnd = func() { loseEnd(max(log.start, log.end()-4), 2*len(log.faults)%7) }
			away := errors.New("connection refused")
			log.trouble["bounds"] = rapid.SliceOfN(rapid.SampledFrom([]error{nil, away}), 0, 10).Draw(t, "bounds")
			poisoned := maps.Clone(store.poison)
			for _, r := range log.records {
				numbers[r.Meta.Hash] = sample.numbers(r.Value)
			}
			for range rapid.IntRange(0, 6).Draw(t, "crashes") {
				log.steps = rapid.IntRange(0, 25).Draw(t, "steps")
				follow(newWriter(t, store, dead), log, time.Hour)
				log.expired = rapid.IntRange(0, 2).Draw(t, "expired leases")
				switch rapid.IntRange(0, 9).Draw(t, "incident") {
				case 0: // the offsets have expired
					log.offset, log.epoch, log.metadata = -1, -1, ""
				case 1: // an operator has reset them
					log.offset, log.epoch, log.metadata = rapid.Int64Range(log.start, max(log.start, min(log.offset, kept))).Draw(t, "reset"), -1, ""
				case 2:
					loseEnd(rapid.Int64Range(log.start, log.end()).Draw(t, "cut"), rapid.IntRange(0, 5).Draw(t, "after the cut"))
				}
			}
			log.steps = -1
			log.loseEnd = func() {}
			store.outcome = slices.DeleteFunc(store.outcome, func(s string) bool { return s == "crash" })
			follow(newWriter(t, store, dead), log, time.Hour)
			// Refused rows that are alone wait for others, which show that they are at fault.
			store.outcome = nil
			log.append(time.Now(), request(begin, number), false)
			want[spanID(number)] = 1
			follow(newWriter(t, store, dead), log, time.Hour)
			if log.offset != log.end() && log.start < log.end() {
				t.Fatalf("committed %d of %d", log.offset, log.end())
			}
			for id := range poisoned { // diverted, or stored once the table was mended
				delete(want, id)
				delete(store.spans, id)
			}
			for id, n := range want {
				switch got := store.spans[id]; {
				case got == 0 && (shrinks || lost[id]):
					delete(want, id)
				case 0 < got && got < n: // late copies that were found when rows were looked up
					want[id] = got
				}
			}
			if diff := cmp.Diff(want, store.spans); diff != "" {
				t.Fatalf("spans (-want +got):\n%s", diff)
			}
		})
	})
}

// The times of spans are judged by the first receipt that the record's header names: what waited in a
// spool or in the dead letters is stored. Without it Kafka's timestamp counts, and where that is 0 nothing is
// refused for its time.
func TestTimesAreJudgedByFirstReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		ago := time.Now().Add(-10 * 24 * time.Hour)
		log.append(time.Now(), request(ago, 1, 2), false)
		log.records[0].Meta.Received = ago
		log.append(time.UnixMilli(0), request(time.Now(), 3, 4), false)
		log.append(time.Now(), request(ago, 5), false)
		log.records[2].Meta.Received = time.Now()
		log.append(ago, request(time.Now(), 6), false)
		follow(newWriter(t, store, dead), log, time.Minute)
		if diff := cmp.Diff(stored(1, 2, 3, 4), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		received := map[int64]time.Time{}
		for _, l := range dead.all {
			received[l.Offset] = l.Meta.Received
		}
		if len(received) != 2 || !received[2].Equal(time.Now().Truncate(time.Second)) && received[2].IsZero() || !received[3].Equal(ago) {
			t.Errorf("the dead letters say they were received at %v", received)
		}
	})
}

package writer_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

// newSteadyWriter returns a writer with the bounds of its default configuration.
func newSteadyWriter(t interface{ Fatal(...any) }, store *table) *writer.Writer {
	w, err := writer.New(writer.DefaultConfig(), store.sample.of, store, store, &letters{}, writer.Options{
		AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour, Grace: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// newPartitions returns so many partitions of which a broker collects what comes. All rows go to one
// shard.
func newPartitions(store *table, n int) []*partitionLog {
	store.shards = 1
	logs := make([]*partitionLog, n)
	for i := range logs {
		logs[i] = newLogOf(store.sample)
		logs[i].number, logs[i].collects, logs[i].growing = i, true, true
	}
	return logs
}

// ticking is how long after its start a writer knows how little it has to wait for.
const ticking = 10500 * time.Millisecond

// handle runs a writer over partitions until stop is called.
func handle(w *writer.Writer, logs []*partitionLog) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var handling sync.WaitGroup
	for _, log := range logs {
		handling.Go(func() { _ = w.Handle(ctx, log) })
	}
	return func() { cancel(); handling.Wait() }
}

// send appends a record with one span to each of the partitions, numbered from first on.
func send(logs []*partitionLog, first int) {
	for i, log := range logs {
		log.mu.Lock()
		log.append(time.Now(), request(time.Now(), first+i), false)
		log.mu.Unlock()
	}
}

// A minute at a steady rate: how many INSERTs there are does not depend on the partitions, no
// row waits for longer than max_batch_wait, and only fetches ask for the ends of logs.
func TestInsertsOfASteadyMinute(t *testing.T) {
	const minute, requests = 60, 5 // each second
	for _, rate := range []int{500, 5_000, 20_000} {
		for _, partitions := range []int{12, 48} {
			t.Run(fmt.Sprintf("%d spans/s, %d partitions", rate, partitions), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store := newTable()
					logs := newPartitions(store, partitions)
					stop := handle(newSteadyWriter(t, store), logs)
					// A gateway makes a record of each request for each partition.
					number := 0
					for range minute * requests {
						<-time.After(time.Second / requests)
						spans := make([][]int, partitions)
						for range rate / requests {
							spans[number%partitions] = append(spans[number%partitions], number)
							number++
						}
						for i, log := range logs {
							log.mu.Lock()
							log.append(time.Now(), request(time.Now(), spans[i]...), false)
							log.mu.Unlock()
						}
					}
					<-time.After(2 * time.Second)
					stop()
					if len(store.spans) != number {
						t.Errorf("%d of %d spans are stored", len(store.spans), number)
					}
					for _, log := range logs {
						if log.ends > 0 {
							t.Errorf("partition %d was asked %d times for its end, which fetches tell", log.number, log.ends)
						}
					}
					if store.inserts < minute-1 || store.inserts > minute+2 {
						t.Errorf("%d INSERTs in a minute", store.inserts)
					}
					slices.Sort(store.rows)
					if median := store.rows[len(store.rows)/2]; median < rate*9/10 || median > rate*11/10 {
						t.Errorf("%d rows in the median INSERT", median)
					}
				})
			})
		}
	}
}

// Partitions decode into the same blocks at every tick, whose dictionaries are filled
// already, also when the garbage collector runs in between.
func TestBlocksAreKeptBetweenTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 12)
		table, made := store.sample.of, new(atomic.Int64)
		table.New = func() columns.Block {
			made.Add(1)
			return columns.NewSpans()
		}
		w, err := writer.New(config(), table, store, store, &letters{}, writer.Options{AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		stop := handle(w, logs)
		defer stop()
		<-time.After(ticking)
		for tick := range 5 {
			send(logs, tick*len(logs))
			<-time.After(3 * time.Second)
			runtime.GC()
			runtime.GC() // what a sync.Pool holds survives one
			if want := int64(len(logs) + 1); made.Load() > want {
				t.Fatalf("%d blocks made after %d ticks, want at most %d: one for each partition, and one to join them", made.Load(), tick+1, want)
			}
		}
	})
}

// ClickHouse refuses a row of one partition. The others are stored at once, each with its own
// rows, and only that row is diverted.
func TestRefusedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 12)
		store.poison[spanID(5)] = true
		dead := &letters{}
		w := newWriter(t, store, dead)
		stop := handle(w, logs)
		defer stop()
		<-time.After(ticking)
		send(logs, 0)
		<-time.After(5 * time.Second)
		store.mu.Lock()
		n := len(store.spans)
		store.mu.Unlock()
		if n != 11 {
			t.Errorf("%d spans are stored, want 11", n)
		}
		before := store.inserts
		send(logs, 12)
		<-time.After(5 * time.Second)
		if len(dead.all) != 1 {
			t.Errorf("%d dead letters", len(dead.all))
		}
		if n := store.inserts - before; n > 20 {
			t.Errorf("%d INSERTs after the refusal", n)
		}
	})
}

// While ClickHouse has too many parts, the partitions send one INSERT together, and after it again.
func TestTooManyParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 48)
		stop := handle(newSteadyWriter(t, store), logs)
		defer stop()
		<-time.After(ticking)
		store.mu.Lock()
		store.broken = tooManyParts
		store.mu.Unlock()
		send(logs, 0)
		<-time.After(10 * time.Minute)
		store.mu.Lock()
		if most := 10*60/5*2 + 30; store.inserts > most {
			t.Errorf("%d INSERTs in ten minutes, want at most %d", store.inserts, most)
		}
		store.broken = nil
		store.mu.Unlock()
		<-time.After(10 * time.Second)
		if len(store.spans) != 48 {
			t.Errorf("%d spans are stored", len(store.spans))
		}
		before := store.inserts
		for i := range 10 {
			send(logs, 48*(i+1))
			<-time.After(time.Second)
		}
		if n := store.inserts - before; n > 12 {
			t.Errorf("%d INSERTs in the ten seconds after", n)
		}
	})
}

// Partitions are given up while ClickHouse answers with errors. Nothing is sent again, so the other
// members of the group do not wait. The next owner stores the rows.
func TestGivenUpWhileThereAreTooManyParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 12)
		stop := handle(newSteadyWriter(t, store), logs)
		<-time.After(ticking)
		store.mu.Lock()
		store.broken = tooManyParts
		store.mu.Unlock()
		send(logs, 0)
		<-time.After(3 * time.Second)
		begun := time.Now()
		stop()
		if took := time.Since(begun); took > 10*time.Millisecond {
			t.Errorf("the partitions were given up after %s", took)
		}
		if store.inserts < 2 {
			t.Errorf("%d INSERTs before", store.inserts)
		}
		store.broken = nil
		defer handle(newSteadyWriter(t, store), logs)()
		<-time.After(10 * time.Second)
		store.mu.Lock()
		defer store.mu.Unlock()
		if len(store.spans) != 12 {
			t.Errorf("%d spans are stored", len(store.spans))
		}
	})
}

// A view fails for a moment after the rows are stored. The same block is sent again, so that the
// view gets it, and nothing is stored twice.
func TestViewThatFailsForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 12)
		store.outcome = []string{"view busy", "view busy"}
		stop := handle(newSteadyWriter(t, store), logs)
		defer stop()
		<-time.After(ticking)
		send(logs, 0)
		<-time.After(10 * time.Second)
		if store.inserts != 3 || len(store.tokens) != 1 {
			t.Errorf("%d INSERTs under %d tokens, want 3 under one", store.inserts, len(store.tokens))
		}
		for id, n := range store.spans {
			if n != 1 {
				t.Errorf("span %s is stored %d times", id, n)
			}
		}
		for _, log := range logs {
			if log.offset != 1 {
				t.Errorf("partition %d has committed %d", log.number, log.offset)
			}
		}
	})
}

// The lease of one partition is over. Its rows are not sent, and those of the others are.
func TestOneLeaseIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 12)
		w := newSteadyWriter(t, store)
		ctx, cancel := context.WithCancel(t.Context())
		var handling sync.WaitGroup
		for i, log := range logs {
			handling.Go(func() {
				if i == 3 {
					_ = w.Handle(ctx, leased{log, time.Now().Add(-time.Second)})
				} else {
					_ = w.Handle(ctx, log)
				}
			})
		}
		<-time.After(ticking)
		send(logs, 0)
		<-time.After(5 * time.Second)
		cancel()
		handling.Wait()
		if len(store.spans) != 11 || store.spans[spanID(3)] != 0 {
			t.Errorf("%d spans are stored, %d of the partition whose lease is over", len(store.spans), store.spans[spanID(3)])
		}
	})
}

// A partition that does not come holds the others up for a moment only.
func TestSlowPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		logs := newPartitions(store, 12)
		stop := handle(newSteadyWriter(t, store), logs)
		defer stop()
		<-time.After(ticking)
		logs[3].mu.Lock()
		logs[3].trouble["commit"] = []error{errors.New("no coordinator"), errors.New("no coordinator")}
		logs[3].mu.Unlock()
		send(logs, 0)
		<-time.After(time.Second)
		store.mu.Lock()
		defer store.mu.Unlock()
		if len(store.spans) < 11 {
			t.Errorf("%d spans are stored", len(store.spans))
		}
	})
}

// Several partitions store together, while writers crash, give partitions to each other at any
// step, and ClickHouse fails in any way.
func TestExactlyOnceTogether(t *testing.T) {
	for name, sample := range samples {
		t.Run(name, func(t *testing.T) { testExactlyOnceTogether(t, sample) })
	}
}

func testExactlyOnceTogether(t *testing.T, sample *sample) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(noDeadline{t}, func(t *rapid.T) {
			store, dead := newTableOf(sample), &letters{}
			store.shards = rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(t, "shards")
			want := map[string]int{}
			number := 0
			var logs []*partitionLog
			for n := range rapid.IntRange(2, 6).Draw(t, "partitions") {
				log := newLogOf(sample)
				log.number, log.growing = n, true
				log.collects = rapid.IntRange(0, 7).Draw(t, "collects") > 0
				logs = append(logs, log)
			}
			poisoned := map[string]bool{}
			grow := func() {
				for _, log := range logs {
					if rapid.IntRange(0, 3).Draw(t, "silent") == 0 {
						continue
					}
					var items []int
					for range rapid.IntRange(1, 4).Draw(t, "items") {
						items = append(items, number)
						want[sample.id(number)] = 1
						number++
					}
					log.mu.Lock()
					log.append(time.Now(), sample.request(time.Now(), items...), rapid.IntRange(0, 9).Draw(t, "resend") == 0)
					log.mu.Unlock()
					if len(items) > 1 && rapid.IntRange(0, 29).Draw(t, "poison") == 0 {
						id := sample.id(items[0])
						store.mu.Lock()
						store.poison[id] = true
						store.mu.Unlock()
						poisoned[id] = true
						delete(want, id)
					}
				}
			}
			newWriter := func() *writer.Writer {
				cfg := config()
				cfg.MaxBatchRows = rapid.SampledFrom([]int{8, 1000, 1000}).Draw(t, "rows of a batch")
				w, err := writer.New(cfg, sample.of, store, store, dead, writer.Options{
					AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour, Grace: 5 * time.Second,
				})
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			writers := []*writer.Writer{newWriter(), newWriter()}
			outcomes := []string{
				"", "", "", "", "fails", "busy", "limit", "answer lost", "partly", "crash", "mended", "view fails", "view busy",
				"token only", "token busy", "runs on",
			}
			for range rapid.IntRange(1, 6).Draw(t, "generations") {
				fail := func() {
					store.mu.Lock()
					store.outcome = rapid.SliceOfN(rapid.SampledFrom(outcomes), 0, 8).Draw(t, "outcomes")
					store.mu.Unlock()
				}
				if rapid.Bool().Draw(t, "behind") {
					fail()
					grow()
				}
				split := rapid.IntRange(0, 2).Draw(t, "split") == 0
				owned := make([][]*partitionLog, len(writers))
				for _, log := range logs {
					log.steps, log.expired = -1, 0
					if rapid.IntRange(0, 5).Draw(t, "crashes") == 0 {
						log.steps = rapid.IntRange(0, 25).Draw(t, "steps")
					}
					if rapid.IntRange(0, 7).Draw(t, "late") == 0 {
						log.expired = rapid.IntRange(0, 3).Draw(t, "expired leases")
					}
					owner := 0
					if split {
						owner = rapid.IntRange(0, len(writers)-1).Draw(t, "owner")
					}
					owned[owner] = append(owned[owner], log)
				}
				var stops []func()
				for i, w := range writers {
					stops = append(stops, handle(w, owned[i]))
				}
				for range rapid.IntRange(1, 6).Draw(t, "growths") {
					<-time.After(time.Duration(rapid.SampledFrom([]int{1, 500, 1000, 1700, 40_000}).Draw(t, "ms")) * time.Millisecond)
					fail()
					grow()
				}
				<-time.After(time.Duration(rapid.SampledFrom([]int{0, 1, 10, 300, 999, 1001, 5_000, 60_000}).Draw(t, "ms")) * time.Millisecond)
				for i, stop := range stops {
					stop()
					if rapid.Bool().Draw(t, "restart") {
						writers[i] = newWriter()
					}
				}
				if rapid.IntRange(0, 9).Draw(t, "incident") == 0 { // offsets have expired
					log := rapid.SampledFrom(logs).Draw(t, "of")
					log.offset, log.epoch, log.metadata = -1, -1, ""
				}
			}
			store.outcome = nil
			settle := func() {
				for _, log := range logs {
					log.steps, log.expired = -1, 0
				}
				stop := handle(writers[0], logs)
				for range 60 * 60 {
					<-time.After(time.Second)
					if !slices.ContainsFunc(logs, func(log *partitionLog) bool { log.mu.Lock(); defer log.mu.Unlock(); return log.offset < log.end() }) {
						break
					}
				}
				stop()
			}
			settle()
			// Refused rows that are alone wait for others, which show that they are at fault.
			for _, log := range logs {
				log.append(time.Now(), sample.request(time.Now(), number), false)
				want[sample.id(number)] = 1
				number++
			}
			settle()
			for _, r := range store.running {
				r.put()
			}
			for _, log := range logs {
				if log.offset != log.end() {
					t.Fatalf("partition %d: committed %d of %d", log.number, log.offset, log.end())
				}
			}
			for id := range poisoned { // diverted, or stored once the table was mended
				if store.spans[id] > 1 {
					t.Fatalf("%s is stored %d times", id, store.spans[id])
				}
				delete(store.spans, id)
			}
			if diff := cmp.Diff(want, store.spans); diff != "" {
				t.Fatalf("items (-want +got):\n%s", diff)
			}
		})
	})
}

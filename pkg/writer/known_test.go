package writer_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

// counted returns a writer whose metrics value reads.
func counted(t *testing.T, store *table, dead writer.DeadLetters) (w *writer.Writer, value func(name string, labels ...string) float64) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	w, err := writer.New(config(), store.sample.of, store, store, dead, writer.Options{
		AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour, Grace: 5 * time.Second, Registerer: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, func(name string, labels ...string) float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, f := range families {
			if f.GetName() != name {
				continue
			}
			for _, m := range f.GetMetric() {
				if hasLabels(m, labels) {
					sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
		return sum
	}
}

func hasLabels(m *dto.Metric, wanted []string) bool {
	for _, w := range wanted {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName()+"="+l.GetValue() == w
		}
		if !found {
			return false
		}
	}
	return true
}

// The committed offsets expire, or are deleted, or are reset by an operator, while the log has
// its records still. Nothing is stored again, and an operator hears of it.
func TestOffsetsThatProveNothing(t *testing.T) {
	tests := map[string]struct {
		why  string
		lose func(*partitionLog)
	}{
		"deleted":                      {"none", func(l *partitionLog) { l.offset, l.epoch, l.metadata = -1, -1, "" }},
		"reset by an operator":         {"not ours", func(l *partitionLog) { l.offset, l.epoch, l.metadata = 0, -1, "" }},
		"committed by an older writer": {"not ours", func(l *partitionLog) { l.metadata, l.offset = "", 0 }},
		"of a topic of that name":      {"other topic", func(l *partitionLog) { l.id = kafka.TopicID{9} }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store := newLog(), newTable()
				log.id = kafka.TopicID{1}
				var all []int
				for i := range 40 {
					all = append(all, 5*i, 5*i+1, 5*i+2, 5*i+3, 5*i+4)
					log.append(time.Now(), request(time.Now(), all[5*i:]...), false)
				}
				follow(newWriter(t, store, &letters{}), log, time.Minute)
				tc.lose(log)
				log.append(time.Now(), request(time.Now(), 200), false)
				w, value := counted(t, store, &letters{})
				follow(w, log, time.Minute)
				if diff := cmp.Diff(stored(append(all, 200)...), store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
				if n := value("metaflow_writer_positions_doubted_total", "why="+tc.why); n != 1 {
					t.Errorf("%v takeovers were counted as doubted", n)
				}
				if n := value("metaflow_writer_spans_inserted_total"); n != 1 {
					t.Errorf("%v spans were counted as inserted", n)
				}
				if n := value("metaflow_writer_spans_duplicate_total", "by=position"); n != 200 {
					t.Errorf("%v spans were counted as duplicates", n)
				}
			})
		})
	}
}

// The log loses its end and grows again, past the committed offset: what is new is stored.
func TestLogGrowsAgainAfterItLostItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 10 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		log.cut(6)
		for i := range 20 {
			log.append(time.Now(), request(time.Now(), 100+i), false)
		}
		w, value := counted(t, store, &letters{})
		follow(w, log, time.Minute)
		want := stored(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		for i := range 20 {
			want[spanID(100+i)] = 1
		}
		if diff := cmp.Diff(want, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		if n := value("metaflow_writer_positions_doubted_total", "why=truncated"); n != 1 {
			t.Errorf("%v truncations were counted", n)
		}
	})
}

// The log loses records that were stored, and grows again past the position,
// while a batch is stored that was full in the middle of a fetch. The next fetch
// does not begin where that one ended; the loss is noticed all the same, and what
// is new before the position is stored too.
func TestLogLosesItsEndBehindAFullBatch(t *testing.T) {
	for before := range 4 {
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store := newLog(), newTable()
				// The first record decides where the batch is full.
				log.append(time.Now(), request(time.Now(), []int{1000, 1001, 1002, 1003}[:before+1]...), false)
				for i := range 30 {
					log.append(time.Now(), request(time.Now(), i), false)
				}
				log.growing = true
				log.onCommit = func() {
					if log.offset == 0 {
						return // it is the plan
					}
					log.onCommit, log.growing = nil, false
					log.cut(10)
					for i := range 40 {
						log.append(time.Now(), request(time.Now(), 100+i), false)
					}
				}
				follow(newWriter(t, store, &letters{}), log, time.Minute)
				want := maps.Clone(store.spans)
				for i := range 40 {
					want[spanID(100+i)] = 1
				}
				if diff := cmp.Diff(want, store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A refused block is read again to be bisected, and the log has other records
// at its offsets by then. These are stored too.
func TestLogLosesItsEndBeforeABlockIsBisected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		value := request(time.Now(), 0)
		log.append(time.Now(), value, false)
		log.append(time.Now(), value, false) // a copy has no row, and is not read again
		log.append(time.Now(), request(time.Now(), 2), false)
		store.poison[spanID(2)] = true
		log.growing = true
		log.onCommit = func() { // of the plan
			log.onCommit, log.growing = nil, false
			log.cut(1)
			for i := range 5 {
				log.append(time.Now(), request(time.Now(), 100+i), false)
			}
		}
		follow(newWriter(t, store, dead), log, time.Minute)
		if diff := cmp.Diff(stored(0, 100, 101, 102, 103, 104), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// ClickHouse writes down the token and dies before the rows are in place: the retry under the
// same token succeeds, and stores nothing.
func TestTokenWithoutRows(t *testing.T) {
	for name, crash := range map[string]bool{"same writer": false, "after a crash": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store := newLog(), newTable()
				log.append(time.Now(), request(time.Now(), 1, 2, 3), false)
				store.outcome = []string{"token only"}
				if crash {
					store.outcome = append(store.outcome, "crash")
					follow(newWriter(t, store, &letters{}), log, time.Minute)
				}
				w, value := counted(t, store, &letters{})
				follow(w, log, time.Minute)
				if diff := cmp.Diff(stored(1, 2, 3), store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
				if n := value("metaflow_writer_tokens_without_rows_total"); n != 1 {
					t.Errorf("%v tokens were counted", n)
				}
			})
		})
	}
}

// A view that an operator attached fails after the rows are in the table. They are not stored
// again, not diverted, and the partition goes on.
func TestViewThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		for i := range 3 {
			log.append(time.Now().Add(time.Duration(i)*time.Second), request(time.Now(), 2*i, 2*i+1), false)
		}
		store.outcome = []string{"view fails", "view fails", "view fails"}
		w, value := counted(t, store, dead)
		follow(w, log, time.Minute)
		if diff := cmp.Diff(stored(0, 1, 2, 3, 4, 5), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		if len(dead.all) > 0 {
			t.Errorf("%d dead letters", len(dead.all))
		}
		if n := value("metaflow_writer_view_failures_total"); n == 0 {
			t.Error("nothing was counted")
		}
	})
}

// A writer that is stopped between its plan and its insert wakes when another has stored the
// range, and ClickHouse has forgotten the token.
func TestWriterThatWakesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		log.append(time.Now(), request(time.Now(), 1, 2), false)
		store.asleep = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = newWriter(t, store, &letters{}).Handle(ctx, leased{log, time.Now().Add(10 * time.Second)})
		}()
		<-time.After(20 * time.Second) // it is stopped before its insert
		late := store.asleep
		store.mu.Lock()
		store.asleep = nil
		store.mu.Unlock()
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		store.mu.Lock()
		clear(store.tokens)
		store.mu.Unlock()
		log.trouble["commit"] = []error{fault.As(fault.Fenced, errors.New("illegal generation"))}
		close(late)
		<-time.After(time.Minute)
		cancel()
		<-done
		if diff := cmp.Diff(stored(1, 2), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// leased is a claim whose lease ends.
type leased struct {
	*partitionLog
	until time.Time
}

func (l leased) Lease() time.Time { return l.until }

// A block is too large for ClickHouse's memory as a whole, and no smaller one may be planned any more:
// its parts are stored.
func TestBlockThatIsTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{}
		for i := range 6 {
			log.append(time.Now(), request(time.Now(), 3*i, 3*i+1, 3*i+2), false)
		}
		store.atMost = 5
		follow(newWriter(t, store, dead), log, time.Hour)
		var all []int
		for i := range 18 {
			all = append(all, i)
		}
		if diff := cmp.Diff(stored(all...), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		if len(dead.all) > 0 {
			t.Errorf("%d dead letters", len(dead.all))
		}
	})
}

// The broker holds a reader back for longer than a fetch waits, while a range is read again: that says
// nothing of the log.
func TestQuotaWhileAPlanIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		for i := range 4 {
			log.append(time.Now(), request(time.Now(), i), false)
		}
		log.metadata = "metaflow/3 at=0 to=4 first=946684800000 shard=1"
		log.faults = []string{"", "throttled", "throttled", "throttled", "throttled", "throttled"}
		follow(newWriter(t, store, &letters{}), log, time.Hour)
		if diff := cmp.Diff(stored(0, 1, 2, 3), store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
	})
}

// Rows of a fresh token are there when ClickHouse says so: look-ups that do not see them must not
// have them stored again and again.
func TestLookupsThatSeeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		log.append(time.Now(), request(time.Now(), 1), false)
		store.outcome, store.blind = []string{"answer lost"}, true
		follow(newWriter(t, store, &letters{}), log, 10*time.Minute)
		if n := store.spans[spanID(1)]; n > 2 || !log.finished() {
			t.Errorf("stored %d times, finished: %v", n, log.finished())
		}
	})
}

// A spool that goes out, or somebody who marks everything as resent, costs one question for each
// batch and not one for each record.
func TestResentRecordsAreLookedUpTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		want := map[string]int{}
		for i := range 200 {
			log.append(time.Now(), request(time.Now(), i), true)
			want[spanID(i)] = 1
		}
		follow(newWriter(t, store, &letters{}), log, time.Minute)
		if diff := cmp.Diff(want, store.spans); diff != "" {
			t.Errorf("spans (-want +got):\n%s", diff)
		}
		if batches := 200 / config().MaxBatchRows; store.lookups > batches+1 {
			t.Errorf("%d questions for %d batches", store.lookups, batches)
		}
	})
}

// Two refused rows alone in their range wait until the table has taken another row, which shows
// that they are at fault: one of their own partition, or of another.
func TestRefusedRowsAlone(t *testing.T) {
	for name, own := range map[string]bool{"own partition": true, "another partition": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store, dead := newLog(), newTable(), &letters{}
				log.append(time.Now(), request(time.Now(), 1, 2), false)
				store.poison[spanID(1)], store.poison[spanID(2)] = true, true
				w, value := counted(t, store, dead)
				other := log
				if !own {
					other = newLog()
					other.number += store.shards // of the same shard
				}
				time.AfterFunc(10*time.Minute, func() {
					if len(dead.all) > 0 {
						t.Error("diverted before anything else was stored")
					}
					other.mu.Lock()
					defer other.mu.Unlock()
					other.append(time.Now(), request(time.Now(), 3), false)
				})
				if !own {
					done := make(chan struct{})
					go func() {
						defer close(done)
						<-time.After(10*time.Minute + time.Second)
						follow(w, other, time.Minute)
					}()
					defer func() { <-done }()
				}
				follow(w, log, 20*time.Minute)
				if n := value("metaflow_writer_spans_diverted_total"); n != 2 || len(dead.all) != 1 || !log.finished() {
					t.Errorf("%v spans in %d dead letters, finished: %v", n, len(dead.all), log.finished())
				}
				if diff := cmp.Diff(stored(3), store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// The table refuses everything, and is mended while a block is bisected: the rows that
// were refused before are good.
func TestMendedInTheMiddle(t *testing.T) {
	for _, after := range []int{1, 5, 20, 37, 60} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store, dead := newLog(), newTable(), &letters{}
				var all []int
				for i := range 18 {
					all = append(all, i)
				}
				log.append(time.Now(), request(time.Now(), all...), false)
				for range after {
					store.outcome = append(store.outcome, "refused")
				}
				follow(newWriter(t, store, dead), log, time.Hour)
				if diff := cmp.Diff(stored(all...), store.spans); diff != "" {
					t.Errorf("spans (-want +got):\n%s", diff)
				}
				if len(dead.all) > 0 {
					t.Errorf("%d good rows were diverted", len(dead.all))
				}
			})
		})
	}
}

// ClickHouse does not answer while the log grows: the lag says so.
func TestLagWhileClickHouseHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store := newLog(), newTable()
		log.append(time.Now(), request(time.Now(), 0), false)
		store.hangs = true
		w, value := counted(t, store, &letters{})
		time.AfterFunc(5*time.Second, func() {
			log.mu.Lock()
			defer log.mu.Unlock()
			for i := range 75 {
				log.append(time.Now(), request(time.Now(), i+1), false)
			}
		})
		time.AfterFunc(30*time.Second, func() {
			if n := value("metaflow_writer_lag_records"); n != 76 {
				t.Errorf("the lag is %v", n)
			}
		})
		follow(w, log, time.Minute)
	})
}

// ClickHouse does not answer a new owner of the partition: the lag is that to the committed
// offset, although nothing was taken over, and the offset stands still.
func TestLagOfATakeoverThatHangs(t *testing.T) {
	tests := map[string]struct {
		committed int64 // negative: nothing ever was
		lag       float64
	}{
		"somebody else's offset": {1, 2},
		"no offset":              {-1, 3},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, store := newLog(), newTable()
				for i := range 3 {
					log.append(time.Now(), request(time.Now(), i), false)
				}
				log.offset, log.epoch, log.metadata = tc.committed, -1, ""
				store.hangs = true
				w, value := counted(t, store, &letters{})
				for _, at := range []time.Duration{30 * time.Second, 50 * time.Second} {
					time.AfterFunc(at, func() {
						if n := value("metaflow_writer_lag_records", "partition=3"); n != tc.lag {
							t.Errorf("after %s the lag is %v, want %v", at, n, tc.lag)
						}
						if n := value("metaflow_writer_committed_offset", "partition=3"); n != float64(max(tc.committed, 0)) {
							t.Errorf("after %s the committed offset is %v", at, n)
						}
					})
				}
				follow(w, log, time.Minute)
				if n := value("metaflow_writer_lag_records"); n != 0 {
					t.Errorf("a partition that was given up still shows the lag %v", n)
				}
			})
		})
	}
}

// Once ClickHouse is back, no partition waits for the end of its longest backoff.
func TestPartitionsSettleTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		store.broken = errors.New("connection refused")
		w := newWriter(t, store, &letters{})
		var logs []*partitionLog
		done := make(chan time.Duration)
		start := time.Now()
		const away = 10 * time.Minute
		for n := range 12 {
			log := newLog()
			log.number = n
			log.append(time.Now(), request(time.Now(), n), false)
			logs = append(logs, log)
			go func() {
				<-time.After(time.Duration(n) * time.Second) // their attempts are spread
				follow(w, log, time.Hour)
				done <- time.Since(start)
			}()
		}
		<-time.After(away)
		store.mu.Lock()
		store.broken = nil
		store.mu.Unlock()
		for range logs {
			if took := <-done - away; took > 6*time.Second {
				t.Errorf("a partition took %s to settle", took)
			}
		}
	})
}

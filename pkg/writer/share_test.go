package writer_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

// counting is a partition whose fetches take a second, and that notes how many
// bytes they ask for together.
type counting struct {
	*partitionLog
	running, most *atomic.Int64
}

func (c counting) Collect(ctx context.Context, offset int64, minBytes, maxBytes int, maxWait time.Duration) (kafka.Batch, error) {
	if n := c.running.Add(int64(maxBytes)); n > c.most.Load() {
		c.most.Store(n)
	}
	defer c.running.Add(-int64(maxBytes))
	<-time.After(time.Second)
	return c.partitionLog.Collect(ctx, offset, minBytes, maxBytes, maxWait)
}

// A fetch, with the columns made of it, counts as eight times its compressed
// bytes. So 24 MiB for the partitions of a shard that keep up hold three fetches
// of 1 MiB at a time, and the other partitions wait. Fetches that bring nothing ask
// for less the next time.
func TestFetchesAreBoundedByMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newTable()
		cfg := config()
		cfg.FetchBytes, cfg.MaxBatch = 1<<20, 1<<20
		cfg.MemoryBytes = int64(store.shards) * 2 * 24 << 20
		w, err := writer.New(cfg, columns.TracesTable(), store, store, &letters{}, writer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var running, most atomic.Int64
		var handling sync.WaitGroup
		for n := range 8 {
			log := newLog()
			log.number = n * store.shards
			handling.Go(func() { _ = w.Handle(ctx, counting{log, &running, &most}) })
		}
		handling.Wait()
		if most.Load() != 3<<20 {
			t.Errorf("fetches asked for %d bytes at a time", most.Load())
		}
	})
}

// The memory must be enough for one fetch, and for one batch, in each of its
// halves.
func TestMemoryIsEnoughForAFetch(t *testing.T) {
	cfg := writer.DefaultConfig()
	cfg.FetchBytes, cfg.MaxBatch, cfg.MemoryBytes = 1<<20, 1, 16<<20
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.MemoryBytes--
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "memory_bytes: 16777215 is less than 16777216") {
		t.Errorf("Validate = %v", err)
	}
}

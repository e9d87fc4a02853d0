package writer

import (
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/metaflowys/metaflow-server/pkg/columns"
)

// share is the part of Config.MemoryBytes for the rows of one shard of ClickHouse.
// A shard that does not answer keeps what its partitions hold, and takes nothing
// from the partitions of other shards.
type share struct {
	memory *semaphore.Weighted // bytes, for partitions that are not behind
	slots  *semaphore.Weighted // whole batches, for those that are
	large  chan columns.Block  // idle blocks that have grown to whole batches

	gatherer *gatherer

	accepted  atomic.Int64 // blocks that ClickHouse took
	viewsFail atomic.Bool  // the last block was stored although its insert failed

	maxBatch   int64 // Config.MaxBatch, or less when there are many shards
	fetchBytes int   // Config.FetchBytes, or less
}

// fetchFactor is how much larger than Config.FetchBytes a fetch and the
// columns made of it are taken to be: spans compress four to eight times, and
// hexadecimal ids and dictionary keys add to them.
const fetchFactor = 8

// newShare returns one of as many shares as there are shards. Half of it is for
// partitions that are behind: as many as it holds whole batches may fill one at a time. The
// other half is for those that keep up.
func newShare(cfg *Config, shards int) *share {
	half := max(cfg.MemoryBytes/2/int64(max(shards, 1)), fetchFactor)
	maxBatch := min(cfg.MaxBatch, half)
	slots := half / maxBatch
	return &share{
		memory: semaphore.NewWeighted(half), slots: semaphore.NewWeighted(slots), large: make(chan columns.Block, slots),
		maxBatch: maxBatch, fetchBytes: min(cfg.FetchBytes, int(half/fetchFactor)),
	}
}

// fetchMemory is what a fetch and the columns made of it may take.
func (s *share) fetchMemory() int64 { return int64(s.fetchBytes) * fetchFactor }

// shareOf returns that of a shard.
func (w *Writer) shareOf(shard int) *share {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.shares[shard]
	if s == nil {
		s = newShare(&w.cfg, w.store.Shards())
		s.gatherer = newGatherer(w, s, shard)
		w.shares[shard] = s
	}
	return s
}

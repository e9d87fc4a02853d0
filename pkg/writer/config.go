package writer

import (
	"errors"
	"fmt"
	"time"
)

// Config is what an operator may set.
type Config struct {
	// Group: Kafka consumer group of all writers of one installation. Spans
	// and flows have one each.
	Group string `mapstructure:"group" doc:"Kafka consumer group of all writers of one installation. Spans and flows have one each."`
	// Session: How long after its last heartbeat a writer loses its
	// partitions. Kafka's group.min.session.timeout.ms is the minimum.
	Session time.Duration `mapstructure:"session_timeout" doc:"How long after its last heartbeat a writer loses its partitions. Kafka's group.min.session.timeout.ms is the minimum."`
	// MaxBatchRows: Maximum rows of one INSERT. More rows make fewer parts
	// in ClickHouse and take more memory on both sides.
	MaxBatchRows int `mapstructure:"max_batch_rows" doc:"Maximum rows of one INSERT. More rows make fewer parts in ClickHouse and take more memory on both sides."`
	// MaxBatch: Maximum bytes of columns in one INSERT, before compression.
	MaxBatch int64 `mapstructure:"max_batch_bytes" unit:"bytes" doc:"Maximum bytes of columns in one INSERT, before compression."`
	// MaxWait: Longest time from the acknowledgement of a request until its
	// rows can be queried, while the writer keeps up. A writer makes about
	// one INSERT in that time for each shard, whatever the number of
	// partitions. Too short makes many small parts in ClickHouse.
	MaxWait time.Duration `mapstructure:"max_batch_wait" doc:"Longest time from the acknowledgement of a request until its rows can be queried, while the writer keeps up. A writer makes about one INSERT in that time for each shard, whatever the number of partitions. Too short makes many small parts in ClickHouse."`
	// MemoryBytes: Memory of all batches and fetches in flight. Half of it
	// is for lagging partitions, which fill whole batches in turn; when the
	// other half is used up, batches are inserted before they are full.
	MemoryBytes int64 `mapstructure:"memory_bytes" unit:"bytes" doc:"Memory of all batches and fetches in flight. Half of it is for lagging partitions, which fill whole batches in turn; when the other half is used up, batches are inserted before they are full."`
	// FetchBytes: Compressed bytes of one fetch from a partition.
	FetchBytes int `mapstructure:"fetch_bytes" unit:"bytes" doc:"Compressed bytes of one fetch from a partition."`
	// DedupWindow: How long after a request a client's retry of it is
	// recognized by its content.
	DedupWindow time.Duration `mapstructure:"dedup_window" doc:"How long after a request a client's retry of it is recognized by its content."`
	// DedupBytes: Maximum part of a partition's log that the window covers;
	// it is read again when a partition changes hands.
	DedupBytes int64 `mapstructure:"dedup_bytes" unit:"bytes" doc:"Maximum part of a partition's log that the window covers; it is read again when a partition changes hands."`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Group:        "metaflow-writer",
		Session:      10 * time.Second,
		MaxBatchRows: 100_000,
		MaxBatch:     24 << 20,
		MaxWait:      time.Second,
		MemoryBytes:  128 << 20,
		FetchBytes:   256 << 10,
		DedupWindow:  10 * time.Minute,
		DedupBytes:   256 << 20,
	}
}

// DefaultFlowsConfig returns the defaults of a writer of flows. These come in whole minutes, so that some seconds
// more make no difference and a fraction of the parts.
func DefaultFlowsConfig() Config {
	cfg := DefaultConfig()
	cfg.Group = "metaflow-flow-writer"
	cfg.MaxWait = 5 * time.Second
	cfg.MemoryBytes = 64 << 20
	return cfg
}

// Validate reports every problem, each by its key.
func (c Config) Validate() error {
	var errs []error
	if c.Group == "" {
		errs = append(errs, errors.New("group: is empty"))
	}
	for _, p := range []struct {
		key   string
		value int64
	}{
		{"max_batch_rows", int64(c.MaxBatchRows)},
		{"max_batch_bytes", c.MaxBatch},
		{"fetch_bytes", int64(c.FetchBytes)},
		{"dedup_bytes", c.DedupBytes},
	} {
		if p.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %d is not positive", p.key, p.value))
		}
	}
	if c.Session <= 0 {
		errs = append(errs, fmt.Errorf("session_timeout: %s is not positive", c.Session))
	}
	if c.MaxWait <= 0 {
		errs = append(errs, fmt.Errorf("max_batch_wait: %s is not positive", c.MaxWait))
	}
	if c.DedupWindow < 0 {
		errs = append(errs, fmt.Errorf("dedup_window: %s is negative", c.DedupWindow))
	}
	if least := 2 * max(int64(c.FetchBytes)*fetchFactor, c.MaxBatch); c.MemoryBytes < least {
		errs = append(errs, fmt.Errorf("memory_bytes: %d is less than %d, twice max_batch_bytes and twice %d times fetch_bytes", c.MemoryBytes, least, fetchFactor))
	}
	return errors.Join(errs...)
}

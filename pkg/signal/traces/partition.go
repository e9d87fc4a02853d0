package traces

import "github.com/cespare/xxhash/v2"

// Partition returns the Kafka partition of a trace: XXH64 of its 16-byte id,
// modulo the number of partitions. It is part of what is stored: all
// spans of a trace meet in one partition only as long as nobody changes it.
func Partition(traceID []byte, partitions int) int {
	return int(xxhash.Sum64(traceID) % uint64(partitions))
}

package writer

import (
	"strings"
	"sync"
)

// failing knows for which partitions an operation fails, so that the end of ClickHouse is one line of the log
// and not one for each partition. The zero value is ready to use, by many goroutines.
type failing struct {
	mu     sync.Mutex
	causes map[failure]*failed
}

// failure identifies a cause: errors that differ only in numbers, such as ports, have the same one.
type failure struct{ operation, cause string }

type failed struct {
	partitions map[int]bool
	several    bool // more than one at a time, since the first
	telling    bool // one of them is about to log it
}

// add records a failure of a partition. It returns true if the caller is to log it, once others had the time to
// fail as well.
func (f *failing) add(partition int, operation string, err error) (cause failure, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(partition, operation)
	cause = failure{operation, strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, err.Error())}
	if f.causes == nil {
		f.causes = make(map[failure]*failed)
	}
	with := f.causes[cause]
	if with == nil {
		with = &failed{partitions: make(map[int]bool)}
		f.causes[cause] = with
	}
	with.partitions[partition] = true
	with.several = with.several || len(with.partitions) > 1
	first, with.telling = !with.telling, true
	return cause, first
}

// told ends what add asked for. It returns how many partitions fail now, and whether several did.
func (f *failing) told(cause failure) (partitions int, several bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	with := f.causes[cause]
	if with == nil {
		return 0, false
	}
	with.telling = false
	return len(with.partitions), with.several
}

// succeeded forgets the failure of a partition; of an empty operation, all of them.
func (f *failing) succeeded(partition int, operation string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(partition, operation)
}

func (f *failing) remove(partition int, operation string) {
	for cause, with := range f.causes {
		if operation != "" && cause.operation != operation {
			continue
		}
		delete(with.partitions, partition)
		if len(with.partitions) == 0 {
			delete(f.causes, cause)
		}
	}
}

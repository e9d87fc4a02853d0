package kafka

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// abortedTxn is an aborted transaction: readers skip the records of producer from offset
// first up to the abort marker.
type abortedTxn struct{ producer, first int64 }

// abortedTxns are the aborted transactions that a fetch may touch. Other programs may
// write to a topic in transactions. The broker withholds the records of open ones and
// lists the aborted ones.
type abortedTxns struct {
	ahead []abortedTxn       // not reached yet, by offset
	open  map[int64]struct{} // producers inside an aborted transaction
}

// set prepares for the next decode. It keeps list.
func (a *abortedTxns) set(list []abortedTxn) {
	slices.SortFunc(list, func(x, y abortedTxn) int { return cmp.Compare(x.first, y.first) })
	a.ahead = list
	clear(a.open)
}

// has reports whether the records of h belong to an aborted transaction. Calls must
// follow the order of the batches.
func (a *abortedTxns) has(h batchHeader) bool {
	for len(a.ahead) > 0 && a.ahead[0].first < h.next() {
		if a.open == nil {
			a.open = map[int64]struct{}{}
		}
		a.open[a.ahead[0].producer] = struct{}{}
		a.ahead = a.ahead[1:]
	}
	if len(a.open) == 0 || h.attributes()&attrTransaction == 0 {
		return false
	}
	_, aborted := a.open[h.producer()]
	return aborted
}

// controlAbort is the type of the control record that ends an aborted transaction.
const controlAbort = 0

// end processes a control batch: the end of a transaction, or a marker that readers
// ignore.
func (a *abortedTxns) end(h batchHeader) error {
	if !a.has(h) {
		return nil
	}
	r := fieldReader{b: h[batchHeaderSize:]}
	r.varint() // size of the only record
	r.skip(1)
	r.varint() // time
	r.varint() // offset
	key := r.bytes()
	if r.bad || len(key) < 4 {
		return errRecords
	}
	if binary.BigEndian.Uint16(key[2:]) == controlAbort {
		delete(a.open, h.producer())
	}
	return nil
}

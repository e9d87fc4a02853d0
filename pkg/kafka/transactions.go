package kafka

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// abortedTxn says that the records of a producer from an offset on, up to the marker of
// the abort, are not to be read.
type abortedTxn struct{ producer, first int64 }

// abortedTxns are those that a fetch may touch. Other programs may write to a topic in
// transactions; the broker keeps back what belongs to an open one, and says which
// of the others were aborted.
type abortedTxns struct {
	ahead []abortedTxn       // by offset; those not reached yet
	open  map[int64]struct{} // producers within one
}

// set makes list what the next decode goes by. It keeps list.
func (a *abortedTxns) set(list []abortedTxn) {
	slices.SortFunc(list, func(x, y abortedTxn) int { return cmp.Compare(x.first, y.first) })
	a.ahead = list
	clear(a.open)
}

// has reports whether the records of h, which comes after those of the call before, are
// part of an aborted transaction.
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

// end takes a control batch: the end of a transaction, or something that is of no
// concern to readers.
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

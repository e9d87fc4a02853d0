package otlpjson

import "google.golang.org/protobuf/encoding/protowire"

// writer collects protobuf whose messages have no lengths yet.
type writer struct {
	buf      []byte
	lengths  []length // of the messages in the order in which they begin
	inserted int      // bytes that the lengths of the closed ones will take
}

// length is the length of a message and where it belongs in buf.
type length struct{ at, size int }

// state is what back returns to.
type state struct{ buf, lengths, inserted int }

func (w *writer) mark() state { return state{len(w.buf), len(w.lengths), w.inserted} }

func (w *writer) back(s state) {
	w.buf, w.lengths, w.inserted = w.buf[:s.buf], w.lengths[:s.lengths], s.inserted
}

// open begins a message, which close ends.
func (w *writer) open(number protowire.Number) (at int) {
	w.buf = protowire.AppendTag(w.buf, number, protowire.BytesType)
	w.lengths = append(w.lengths, length{at: len(w.buf), size: -w.inserted})
	return len(w.lengths) - 1
}

func (w *writer) close(at int) {
	l := &w.lengths[at]
	l.size += len(w.buf) - l.at + w.inserted // with the lengths inside it
	w.inserted += protowire.SizeVarint(uint64(l.size))
}

func (w *writer) varint(number protowire.Number, v uint64) {
	w.buf = protowire.AppendVarint(protowire.AppendTag(w.buf, number, protowire.VarintType), v)
}

func (w *writer) fixed64(number protowire.Number, v uint64) {
	w.buf = protowire.AppendFixed64(protowire.AppendTag(w.buf, number, protowire.Fixed64Type), v)
}

// finish inserts the lengths and returns the message.
func (w *writer) finish() []byte {
	out := make([]byte, 0, len(w.buf)+w.inserted)
	from := 0
	for _, l := range w.lengths {
		out = protowire.AppendVarint(append(out, w.buf[from:l.at]...), uint64(l.size))
		from = l.at
	}
	return append(out, w.buf[from:]...)
}

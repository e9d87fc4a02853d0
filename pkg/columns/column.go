package columns

import (
	"encoding/binary"
	"slices"

	"github.com/ClickHouse/ch-go/proto"
)

// The column types below hold their rows in ClickHouse's native format, ready to be sent:
// a value is copied once, from the OTLP wire to its column. They implement
// proto.ColInput, and proto.StateEncoder where LowCardinality requires it. Apart from the
// type, their zero values are empty columns.

// column is a column of a block.
type column interface {
	proto.ColInput
	reset()
	bytes() int
	// kept is the memory that the column keeps when it is reset.
	kept() int
	// join makes the rows of another column of the same type follow, which has no joined
	// rows itself. It refers to the other column's memory until reset.
	join(other column)
}

// joined is the wire form of columns that were joined: the bytes of one after another.
type joined struct {
	parts [][]byte
	size  int
}

func (j *joined) add(buf []byte) {
	j.parts = append(j.parts, buf)
	j.size += len(buf)
}

func (j *joined) reset() {
	clear(j.parts) // they would keep the memory of others
	j.parts, j.size = j.parts[:0], 0
}

func (j *joined) encode(b *proto.Buffer) {
	for _, part := range j.parts {
		b.PutRaw(part)
	}
}

func (j *joined) write(w *proto.Writer) {
	for _, part := range j.parts {
		w.ChainWrite(part)
	}
}

// wired holds the rows of a column in the form in which they are sent.
type wired struct {
	buf    []byte
	joined joined // rows after those of buf
}

// EncodeColumn copies the values to b.
func (c *wired) EncodeColumn(b *proto.Buffer) {
	b.PutRaw(c.buf)
	c.joined.encode(b)
}

// WriteColumn writes the values without a copy.
func (c *wired) WriteColumn(w *proto.Writer) {
	w.ChainWrite(c.buf)
	c.joined.write(w)
}

func (c *wired) reset() {
	c.buf = c.buf[:0]
	c.joined.reset()
}

func (c *wired) bytes() int { return len(c.buf) + c.joined.size }
func (c *wired) kept() int  { return cap(c.buf) }

// fixed is a column of values of equal width, little-endian.
type fixed struct {
	wired
	typ   proto.ColumnType
	width int
}

func (c *fixed) Type() proto.ColumnType { return c.typ }
func (c *fixed) Rows() int              { return c.bytes() / c.width }
func (c *fixed) join(o column)          { c.joined.add(o.(*fixed).buf) }

func (c *fixed) putByte(v byte)     { c.buf = append(c.buf, v) }
func (c *fixed) putUint16(v uint16) { c.buf = binary.LittleEndian.AppendUint16(c.buf, v) }

func (c *fixed) putUint32(v uint32) { c.buf = binary.LittleEndian.AppendUint32(c.buf, v) }

func (c *fixed) putUint64(v uint64)                { c.buf = binary.LittleEndian.AppendUint64(c.buf, v) }
func (c *fixed) putAddress(v *[16]byte)            { c.buf = append(c.buf, v[:]...) }
func (c *fixed) putHex(id []byte)                  { c.buf = appendHex(c.buf, id) }
func newFixed(t proto.ColumnType, width int) fixed { return fixed{typ: t, width: width} }

const hexDigits = "0123456789abcdef"

func appendHex(dst, id []byte) []byte {
	for _, b := range id {
		dst = append(dst, hexDigits[b>>4], hexDigits[b&15])
	}
	return dst
}

// text is a column of type String: each value with its length before it.
type text struct {
	wired
	rows int // joined ones included
}

func (c *text) Type() proto.ColumnType { return proto.ColumnTypeString }
func (c *text) Rows() int              { return c.rows }

func (c *text) reset() {
	c.wired.reset()
	c.rows = 0
}

func (c *text) join(o column) {
	other := o.(*text)
	c.joined.add(other.buf)
	c.rows += other.rows
}

// put appends v and returns the copy, which stays readable even after the column's buffer
// has moved.
func (c *text) put(v []byte) []byte {
	c.buf = binary.AppendUvarint(c.buf, uint64(len(v)))
	from := len(c.buf)
	c.buf = append(c.buf, v...)
	c.rows++
	return c.buf[from:len(c.buf):len(c.buf)]
}

func (c *text) putString(v string) {
	c.buf = binary.AppendUvarint(c.buf, uint64(len(v)))
	c.buf = append(c.buf, v...)
	c.rows++
}

// putHex appends an id in hexadecimal.
func (c *text) putHex(id []byte) {
	c.buf = binary.AppendUvarint(c.buf, uint64(2*len(id)))
	c.buf = appendHex(c.buf, id)
	c.rows++
}

// dict is a column of type LowCardinality(String): each distinct value once, and a key
// per row.
//
// A block of one second has few rows and mostly the values of the block before, so the
// column remembers values as words when it is reset. The keys of a block do not depend on
// that: they count the values in the order in which the block has them.
type dict struct {
	values text
	keys   []uint32
	joined []joinedKeys // rows after those of keys
	moved  []uint32     // memory of joined
	rows   int          // of joined

	known map[string]uint32 // index in words
	words []word
	size  int    // of the words' texts
	block uint32 // counts resets
}

// word is a value of a dict, in this block or an earlier one.
type word struct {
	text  string
	block uint32 // the last one that has it
	key   uint32 // there
}

// joinedKeys are the keys of rows in a joined column, and by key that in the joint dictionary.
type joinedKeys struct{ keys, moved []uint32 }

// keptWords bounds the bytes of words that a column remembers when it is reset: some
// hundred resources. A column with more forgets all of them.
const keptWords = 128 << 10

// wordSize is what a word takes besides its text.
const wordSize = 64

func newDict() dict { return dict{known: make(map[string]uint32), block: 1} }

func (c *dict) Type() proto.ColumnType { return "LowCardinality(String)" }
func (c *dict) Rows() int              { return len(c.keys) + c.rows }
func (c *dict) bytes() int             { return c.values.bytes() + 4*c.Rows() }
func (c *dict) kept() int {
	return c.values.kept() + 4*(cap(c.keys)+cap(c.moved)) + max(c.size, wordSize*cap(c.words))
}

func (c *dict) reset() {
	c.values.reset()
	c.keys, c.moved, c.rows = c.keys[:0], c.moved[:0], 0
	clear(c.joined)
	c.joined = c.joined[:0]
	c.block++
	if c.size > keptWords {
		clear(c.known)
		clear(c.words)
		c.words, c.size = c.words[:0], 0
	}
}

// join looks up each distinct value of the other column once.
func (c *dict) join(o column) {
	other := o.(*dict)
	from := len(c.moved)
	for b := other.values.buf; len(b) > 0; {
		size, n := binary.Uvarint(b)
		end := n + int(size)
		c.moved = append(c.moved, c.key(b[n:end]))
		b = b[end:]
	}
	c.joined = append(c.joined, joinedKeys{other.keys, c.moved[from:len(c.moved):len(c.moved)]})
	c.rows += len(other.keys)
}

// word returns the index of v in words. The value is not in the block by that.
func (c *dict) word(v []byte) uint32 {
	if w, ok := c.known[string(v)]; ok {
		return w
	}
	w := uint32(len(c.words))
	text := string(v)
	c.known[text] = w
	c.words = append(c.words, word{text: text})
	c.size += len(v) + wordSize
	return w
}

// keyOf returns the key of a word and adds it to the dictionary if it is new to the block.
func (c *dict) keyOf(w uint32) uint32 {
	known := &c.words[w]
	if known.block != c.block {
		known.block, known.key = c.block, uint32(c.values.rows)
		c.values.putString(known.text)
	}
	return known.key
}

// key returns the key of v and adds v to the dictionary if it is new to the block.
func (c *dict) key(v []byte) uint32 { return c.keyOf(c.word(v)) }

// keyOfString is key for a string.
func (c *dict) keyOfString(v string) uint32 {
	if w, ok := c.known[v]; ok {
		return c.keyOf(w)
	}
	return c.key([]byte(v))
}

func (c *dict) put(v []byte)    { c.keys = append(c.keys, c.key(v)) }
func (c *dict) putKey(k uint32) { c.keys = append(c.keys, k) }

// EncodeState writes the version of the LowCardinality serialization.
func (c *dict) EncodeState(b *proto.Buffer) { b.PutInt64(1) }

// EncodeColumn writes the dictionary, and the keys in the narrowest type.
func (c *dict) EncodeColumn(b *proto.Buffer) {
	rows := c.Rows()
	if rows == 0 {
		return
	}
	// The flags mean that the block has its own dictionary; the low byte is the type of
	// the keys.
	const ownDictionary = 1<<9 | 1<<10
	width := c.width()
	b.PutInt64(ownDictionary | int64(width))
	b.PutInt64(int64(c.values.rows))
	b.PutRaw(c.values.buf)
	b.PutInt64(int64(rows))
	b.Buf = slices.Grow(b.Buf, rows<<width)
	b.Buf = appendWidth(b.Buf, width, c.keys, nil)
	for _, j := range c.joined {
		b.Buf = appendWidth(b.Buf, width, j.keys, j.moved)
	}
}

// appendWidth appends keys in a width, or what moved has for them unless it is nil.
func appendWidth(dst []byte, width proto.CardinalityKey, keys, moved []uint32) []byte {
	move := func(k uint32) uint32 {
		if moved == nil {
			return k
		}
		return moved[k]
	}
	switch width {
	case proto.KeyUInt8:
		for _, k := range keys {
			dst = append(dst, byte(move(k)))
		}
	case proto.KeyUInt16:
		for _, k := range keys {
			dst = binary.LittleEndian.AppendUint16(dst, uint16(move(k)))
		}
	default:
		for _, k := range keys {
			dst = binary.LittleEndian.AppendUint32(dst, move(k))
		}
	}
	return dst
}

func (c *dict) width() proto.CardinalityKey {
	switch {
	case c.values.rows <= 1<<8:
		return proto.KeyUInt8
	case c.values.rows <= 1<<16:
		return proto.KeyUInt16
	default:
		return proto.KeyUInt32
	}
}

// WriteColumn runs EncodeColumn into the writer's buffer.
func (c *dict) WriteColumn(w *proto.Writer) { w.ChainBuffer(c.EncodeColumn) }

// nested is a column whose rows have any number of elements: an Array, a Map, or an Array
// of Tuples. On the wire it is the end offsets of the rows, followed by the columns of
// the elements.
type nested struct {
	typ      proto.ColumnType
	offsets  fixed
	joined   []joinedOffsets // rows after those of offsets
	rows     int             // of joined
	elements []column
	count    uint64 // of elements, joined ones included
}

// joinedOffsets are end offsets of rows in a joined column, and the number of elements
// before them.
type joinedOffsets struct {
	offsets []byte
	before  uint64
}

func newNested(typ proto.ColumnType, elements ...column) nested {
	return nested{typ: typ, offsets: newFixed("UInt64", 8), elements: elements}
}

func (c *nested) Type() proto.ColumnType { return c.typ }
func (c *nested) Rows() int              { return c.offsets.Rows() + c.rows }

// endRow closes a row of n elements, which the caller has appended.
func (c *nested) endRow(n int) {
	c.count += uint64(n)
	c.offsets.putUint64(c.count)
}

func (c *nested) reset() {
	c.offsets.reset()
	clear(c.joined)
	c.joined, c.rows, c.count = c.joined[:0], 0, 0
	for _, e := range c.elements {
		e.reset()
	}
}

func (c *nested) join(o column) {
	other := o.(interface{ base() *nested }).base()
	c.joined = append(c.joined, joinedOffsets{other.offsets.buf, c.count})
	c.rows += other.offsets.Rows()
	c.count += other.count
	for i, e := range c.elements {
		e.join(other.elements[i])
	}
}

// base returns the nested column that a column is built on.
func (c *nested) base() *nested { return c }

func (c *nested) kept() int {
	n := c.offsets.kept()
	for _, e := range c.elements {
		n += e.kept()
	}
	return n
}

func (c *nested) bytes() int {
	n := c.Rows() * c.offsets.width
	for _, e := range c.elements {
		n += e.bytes()
	}
	return n
}

// EncodeState writes the states of the elements.
func (c *nested) EncodeState(b *proto.Buffer) {
	for _, e := range c.elements {
		if s, ok := e.(proto.StateEncoder); ok {
			s.EncodeState(b)
		}
	}
}

// EncodeColumn writes the offsets and the elements.
func (c *nested) EncodeColumn(b *proto.Buffer) {
	c.encodeOffsets(b)
	for _, e := range c.elements {
		e.EncodeColumn(b)
	}
}

// WriteColumn writes the offsets and the elements.
func (c *nested) WriteColumn(w *proto.Writer) {
	if len(c.joined) == 0 {
		c.offsets.WriteColumn(w)
	} else {
		w.ChainBuffer(c.encodeOffsets)
	}
	for _, e := range c.elements {
		e.WriteColumn(w)
	}
}

func (c *nested) encodeOffsets(b *proto.Buffer) {
	c.offsets.EncodeColumn(b)
	b.Buf = slices.Grow(b.Buf, c.rows*c.offsets.width)
	for _, j := range c.joined {
		for i := 0; i < len(j.offsets); i += c.offsets.width {
			b.Buf = binary.LittleEndian.AppendUint64(b.Buf, j.before+binary.LittleEndian.Uint64(j.offsets[i:]))
		}
	}
}

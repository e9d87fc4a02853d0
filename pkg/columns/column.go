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
	// join appends the rows of another column of the same type.
	join(other column)
}

// fixed is a column of values of equal width, little-endian.
type fixed struct {
	typ   proto.ColumnType
	width int
	buf   []byte
}

func (c *fixed) Type() proto.ColumnType       { return c.typ }
func (c *fixed) Rows() int                    { return len(c.buf) / c.width }
func (c *fixed) EncodeColumn(b *proto.Buffer) { b.PutRaw(c.buf) }
func (c *fixed) WriteColumn(w *proto.Writer)  { w.ChainWrite(c.buf) }
func (c *fixed) reset()                       { c.buf = c.buf[:0] }
func (c *fixed) bytes() int                   { return len(c.buf) }
func (c *fixed) join(o column)                { c.buf = append(c.buf, o.(*fixed).buf...) }
func (c *fixed) putByte(v byte)               { c.buf = append(c.buf, v) }
func (c *fixed) putUint16(v uint16)           { c.buf = binary.LittleEndian.AppendUint16(c.buf, v) }

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

// text is a column of type String.
type text struct {
	buf  []byte // each value with its length before it
	rows int
}

func (c *text) Type() proto.ColumnType       { return proto.ColumnTypeString }
func (c *text) Rows() int                    { return c.rows }
func (c *text) EncodeColumn(b *proto.Buffer) { b.PutRaw(c.buf) }
func (c *text) WriteColumn(w *proto.Writer)  { w.ChainWrite(c.buf) }
func (c *text) reset()                       { c.buf, c.rows = c.buf[:0], 0 }
func (c *text) bytes() int                   { return len(c.buf) }

func (c *text) join(o column) {
	other := o.(*text)
	c.buf, c.rows = append(c.buf, other.buf...), c.rows+other.rows
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

// putHex appends an id in hexadecimal.
func (c *text) putHex(id []byte) {
	c.buf = binary.AppendUvarint(c.buf, uint64(2*len(id)))
	c.buf = appendHex(c.buf, id)
	c.rows++
}

// dict is a column of type LowCardinality(String): each distinct value once, and a key
// per row.
type dict struct {
	values text
	known  map[string]uint32
	keys   []uint32
	last   []byte // the value added last
	moved  []uint32
}

func newDict() dict { return dict{known: make(map[string]uint32)} }

func (c *dict) Type() proto.ColumnType { return "LowCardinality(String)" }
func (c *dict) Rows() int              { return len(c.keys) }
func (c *dict) bytes() int             { return c.values.bytes() + 4*len(c.keys) }

func (c *dict) reset() {
	c.values.reset()
	clear(c.known)
	c.keys = c.keys[:0]
}

// join looks up each distinct value of the other column once.
func (c *dict) join(o column) {
	other := o.(*dict)
	c.moved = c.moved[:0]
	for b := other.values.buf; len(b) > 0; {
		size, n := binary.Uvarint(b)
		end := n + int(size)
		c.moved = append(c.moved, c.key(b[n:end]))
		b = b[end:]
	}
	c.keys = slices.Grow(c.keys, len(other.keys))
	for _, k := range other.keys {
		c.keys = append(c.keys, c.moved[k])
	}
}

// key returns the key of v and adds v to the dictionary if it is new.
func (c *dict) key(v []byte) uint32 {
	if k, ok := c.known[string(v)]; ok {
		return k
	}
	k := uint32(c.values.rows)
	c.known[string(v)] = k
	c.last = c.values.put(v)
	return k
}

// keyOf is key for a string.
func (c *dict) keyOf(v string) uint32 {
	if k, ok := c.known[v]; ok {
		return k
	}
	return c.key([]byte(v))
}

func (c *dict) put(v []byte)    { c.keys = append(c.keys, c.key(v)) }
func (c *dict) putKey(k uint32) { c.keys = append(c.keys, k) }

// EncodeState writes the version of the LowCardinality serialization.
func (c *dict) EncodeState(b *proto.Buffer) { b.PutInt64(1) }

// EncodeColumn writes the dictionary, and the keys in the narrowest type.
func (c *dict) EncodeColumn(b *proto.Buffer) {
	if len(c.keys) == 0 {
		return
	}
	// The flags mean that the block has its own dictionary; the low byte is the type of
	// the keys.
	const ownDictionary = 1<<9 | 1<<10
	width := c.width()
	b.PutInt64(ownDictionary | int64(width))
	b.PutInt64(int64(c.values.rows))
	b.PutRaw(c.values.buf)
	b.PutInt64(int64(len(c.keys)))
	switch width {
	case proto.KeyUInt8:
		b.Buf = slices.Grow(b.Buf, len(c.keys))
		for _, k := range c.keys {
			b.Buf = append(b.Buf, byte(k))
		}
	case proto.KeyUInt16:
		b.Buf = slices.Grow(b.Buf, 2*len(c.keys))
		for _, k := range c.keys {
			b.Buf = binary.LittleEndian.AppendUint16(b.Buf, uint16(k))
		}
	default:
		b.Buf = slices.Grow(b.Buf, 4*len(c.keys))
		for _, k := range c.keys {
			b.Buf = binary.LittleEndian.AppendUint32(b.Buf, k)
		}
	}
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
	elements []column
	count    uint64
}

func newNested(typ proto.ColumnType, elements ...column) nested {
	return nested{typ: typ, offsets: newFixed("UInt64", 8), elements: elements}
}

func (c *nested) Type() proto.ColumnType { return c.typ }
func (c *nested) Rows() int              { return c.offsets.Rows() }

// endRow closes a row of n elements, which the caller has appended.
func (c *nested) endRow(n int) {
	c.count += uint64(n)
	c.offsets.putUint64(c.count)
}

func (c *nested) reset() {
	c.offsets.reset()
	c.count = 0
	for _, e := range c.elements {
		e.reset()
	}
}

func (c *nested) join(o column) {
	other := o.(interface{ base() *nested }).base()
	offsets := other.offsets.buf
	c.offsets.buf = slices.Grow(c.offsets.buf, len(offsets))
	for i := 0; i < len(offsets); i += c.offsets.width {
		c.offsets.putUint64(c.count + binary.LittleEndian.Uint64(offsets[i:]))
	}
	c.count += other.count
	for i, e := range c.elements {
		e.join(other.elements[i])
	}
}

// base returns the nested column that a column is built on.
func (c *nested) base() *nested { return c }

func (c *nested) bytes() int {
	n := c.offsets.bytes()
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
	c.offsets.EncodeColumn(b)
	for _, e := range c.elements {
		e.EncodeColumn(b)
	}
}

// WriteColumn writes the offsets and the elements.
func (c *nested) WriteColumn(w *proto.Writer) {
	c.offsets.WriteColumn(w)
	for _, e := range c.elements {
		e.WriteColumn(w)
	}
}

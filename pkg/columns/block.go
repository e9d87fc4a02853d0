package columns

import "github.com/ClickHouse/ch-go/proto"

// block is the columns of one table. Each column is declared once, together with the
// variable that holds its value while a row is appended; putRow then appends one value to
// every declared column. Columns of one type form a group, so putRow is a few loops
// without a branch or call that depends on the column.
type block struct {
	rows  int
	input proto.Input
	all   []column

	enums     []binding[fixed, uint32]
	ports     []binding[fixed, uint32]
	uint16s   []binding[fixed, uint16]
	uint32s   []binding[fixed, uint32]
	uint64s   []binding[fixed, uint64]
	addresses []binding[fixed, [16]byte]
	fixedIDs  []binding[fixed, []byte]
	ids       []binding[text, []byte]
	texts     []binding[text, []byte]
	words     []binding[dict, []byte]
	rowKeys   []binding[dict, uint32]
}

// binding is a column and the variable that provides its values.
type binding[C, V any] struct {
	to   *C
	from *V
}

// enum declares an Enum8 with the number in from.
func (b *block) enum(name string, typ proto.ColumnType, from *uint32) {
	b.enums = append(b.enums, binding[fixed, uint32]{b.fixed(name, typ, 1), from})
}

// port declares a UInt16 with the lower bits of from.
func (b *block) port(name string, from *uint32) {
	b.ports = append(b.ports, binding[fixed, uint32]{b.fixed(name, "UInt16", 2), from})
}

func (b *block) uint16(name string, from *uint16) {
	b.uint16s = append(b.uint16s, binding[fixed, uint16]{b.fixed(name, "UInt16", 2), from})
}

func (b *block) uint32(name string, from *uint32) {
	b.uint32s = append(b.uint32s, binding[fixed, uint32]{b.fixed(name, "UInt32", 4), from})
}

func (b *block) uint64(name string, from *uint64) *fixed { return b.eightBytes(name, "UInt64", from) }

// int64 declares an Int64 with from in two's complement.
func (b *block) int64(name string, from *uint64) *fixed { return b.eightBytes(name, "Int64", from) }

// time declares a DateTime64 with from in nanoseconds since the Unix epoch.
func (b *block) time(name string, from *uint64) *fixed { return b.eightBytes(name, timeType, from) }

func (b *block) eightBytes(name string, typ proto.ColumnType, from *uint64) *fixed {
	c := b.fixed(name, typ, 8)
	b.uint64s = append(b.uint64s, binding[fixed, uint64]{c, from})
	return c
}

func (b *block) address(name string, from *[16]byte) *fixed {
	c := b.fixed(name, "IPv6", 16)
	b.addresses = append(b.addresses, binding[fixed, [16]byte]{c, from})
	return c
}

// fixedID declares a FixedString with the 8 bytes of from in hexadecimal.
func (b *block) fixedID(name string, from *[]byte) *fixed {
	c := b.fixed(name, "FixedString(16)", 16)
	b.fixedIDs = append(b.fixedIDs, binding[fixed, []byte]{c, from})
	return c
}

// id declares a String with the bytes of from in hexadecimal.
func (b *block) id(name string, from *[]byte) *text {
	c := new(text)
	b.add(name, c)
	b.ids = append(b.ids, binding[text, []byte]{c, from})
	return c
}

func (b *block) text(name string, from *[]byte) {
	c := new(text)
	b.add(name, c)
	b.texts = append(b.texts, binding[text, []byte]{c, from})
}

// word declares a LowCardinality(String).
func (b *block) word(name string, from *[]byte) {
	b.words = append(b.words, binding[dict, []byte]{b.dict(name), from})
}

// key declares a LowCardinality(String) with the value at index from in the dictionary,
// for values that many rows share.
func (b *block) key(name string, from *uint32) *dict {
	c := b.dict(name)
	b.rowKeys = append(b.rowKeys, binding[dict, uint32]{c, from})
	return c
}

// fixed, like dict and add, adds a column without a variable: the caller appends to it.
func (b *block) fixed(name string, typ proto.ColumnType, width int) *fixed {
	c := newFixed(typ, width)
	b.add(name, &c)
	return &c
}

func (b *block) dict(name string) *dict {
	c := newDict()
	b.add(name, &c)
	return &c
}

func (b *block) add(name string, c column) {
	b.input = append(b.input, proto.InputColumn{Name: name, Data: c})
	b.all = append(b.all, c)
}

// putRow appends the value of its variable to every bound column.
func (b *block) putRow() {
	for _, c := range b.enums {
		c.to.putByte(byte(*c.from))
	}
	for _, c := range b.ports {
		c.to.putUint16(uint16(*c.from))
	}
	for _, c := range b.uint16s {
		c.to.putUint16(*c.from)
	}
	for _, c := range b.uint32s {
		c.to.putUint32(*c.from)
	}
	for _, c := range b.uint64s {
		c.to.putUint64(*c.from)
	}
	for _, c := range b.addresses {
		c.to.putAddress(c.from)
	}
	for _, c := range b.fixedIDs {
		c.to.putHex(*c.from)
	}
	for _, c := range b.ids {
		c.to.putHex(*c.from)
	}
	for _, c := range b.texts {
		c.to.put(*c.from)
	}
	for _, c := range b.words {
		c.to.put(*c.from)
	}
	for _, c := range b.rowKeys {
		c.to.putKey(*c.from)
	}
	b.rows++
}

// Rows returns the number of rows in the block.
func (b *block) Rows() int { return b.rows }

// Bytes returns the size of the rows as sent, before compression.
func (b *block) Bytes() int {
	n := 0
	for _, c := range b.all {
		n += c.bytes()
	}
	return n
}

// Kept returns the memory that the columns keep when the block is Reset.
func (b *block) Kept() int {
	n := 0
	for _, c := range b.all {
		n += c.kept()
	}
	return n
}

// Input returns the named columns, valid until the next Append or Reset.
func (b *block) Input() proto.Input { return b.input }

func (b *block) reset() {
	b.rows = 0
	for _, c := range b.all {
		c.reset()
	}
}

// join makes the rows of another block of the same table follow. Their bytes stay where
// they are.
func (b *block) join(other *block) {
	b.rows += other.rows
	for i, c := range b.all {
		c.join(other.all[i])
	}
}

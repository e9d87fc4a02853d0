package columns

import (
	"net/netip"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// rows is one block of a table whose blocks are small and rare, so its columns
// are the library's. R is what a row is made of.
type rows[R any] struct {
	input   proto.Input
	appends []func(*R)
	n       int
}

// declare adds a column and says which value a row has in it.
func declare[R, V any](b *rows[R], name string, c proto.ColumnOf[V], value func(*R) V) {
	b.input = append(b.input, proto.InputColumn{Name: name, Data: c})
	b.appends = append(b.appends, func(row *R) { c.Append(value(row)) })
}

func (b *rows[R]) append(row *R) {
	for _, f := range b.appends {
		f(row)
	}
	b.n++
}

// Rows is the number of rows.
func (b *rows[R]) Rows() int { return b.n }

// Input returns the columns with their names.
func (b *rows[R]) Input() proto.Input { return b.input }

func words() proto.ColumnOf[string] { return new(proto.ColStr).LowCardinality() }

func moments() proto.ColumnOf[time.Time] {
	return new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano).WithLocation(time.UTC)
}

// endless is the end of what has not ended: the last second that a DateTime can tell, so that
// valid_to converts to one.
var endless = time.Unix(1<<32-1, 0).UTC()

// moment is a time of a message. Times beyond the years that ClickHouse knows become the last one
// that it does.
func moment(nanos uint64) time.Time {
	return time.Unix(0, int64(min(nanos, uint64(endless.UnixNano())))).UTC()
}

// end is moment for the end of a period; 0 says that it has not ended.
func end(nanos uint64) time.Time {
	if nanos == 0 {
		return endless
	}
	return moment(nanos)
}

func ipv6(b []byte) (proto.IPv6, bool) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return proto.IPv6{}, false
	}
	return proto.IPv6(a.As16()), true
}

// ipv6s leaves out what is no address.
func ipv6s(addresses [][]byte) []proto.IPv6 {
	list := make([]proto.IPv6, 0, len(addresses))
	for _, a := range addresses {
		if ip, ok := ipv6(a); ok {
			list = append(list, ip)
		}
	}
	return list
}

package columns

import (
	"net/netip"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// rows is a block of a table whose blocks are small and rare, so it uses the library's
// columns. R is the source of a row.
type rows[R any] struct {
	input   proto.Input
	appends []func(*R)
	n       int
}

// declare adds a column with the function that returns its value.
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

// Rows returns the number of rows.
func (b *rows[R]) Rows() int { return b.n }

// Input returns the named columns.
func (b *rows[R]) Input() proto.Input { return b.input }

func words() proto.ColumnOf[string] { return new(proto.ColStr).LowCardinality() }

func moments() proto.ColumnOf[time.Time] {
	return new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano).WithLocation(time.UTC)
}

// endless is the end of a period that has not ended: the last second of a DateTime, so
// that valid_to converts to one.
var endless = time.Unix(1<<32-1, 0).UTC()

// moment converts a message's time. Times beyond ClickHouse's range become its last one.
func moment(nanos uint64) time.Time {
	return time.Unix(0, int64(min(nanos, uint64(endless.UnixNano())))).UTC()
}

// end is moment for the end of a period; 0 means that it has not ended.
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

// ipv6s omits malformed addresses.
func ipv6s(addresses [][]byte) []proto.IPv6 {
	list := make([]proto.IPv6, 0, len(addresses))
	for _, a := range addresses {
		if ip, ok := ipv6(a); ok {
			list = append(list, ip)
		}
	}
	return list
}

package newsignal

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// This file defines a new signal: its wire form, its columns and its table. A
// request is
//
//	message ExportReadingsRequest { repeated Reading readings = 1; }
//	message Reading { fixed64 time_unix_nano = 1; bytes id = 2; uint64 value = 3; }
const (
	tagReadings = 1<<3 | signal.Bytes

	tagTime  = 1<<3 | signal.Fixed64
	tagID    = 2<<3 | signal.Bytes
	tagValue = 3<<3 | signal.Varint
)

// Reasons why a reading cannot be stored.
const (
	badID signal.Reason = 1 + iota
	badTime
)

var readings = &signal.Signal{
	Name: "readings", Item: "reading", Items: "readings", Prefix: "readings_",
	Request: "ExportReadingsRequest",
	Method:  "/metaflow.test.v1.ReadingService/Export",
	Topic:   "metaflow.test.readings",
	Message: signal.NewMessage(nil, map[int]*signal.Message{1: signal.NewMessage(nil, nil)}),
	Path:    []signal.Tag{tagReadings},
	Judge: func(item []byte, w signal.Window) (v signal.Verdict, ok bool) {
		var r reading
		if !r.read(item) {
			return v, false
		}
		v.Reason = r.judge(w)
		v.Late = v.Reason == badTime
		v.Hash = xxhash.Sum64(r.id)
		return v, true
	},
	Rules: []signal.Rule{{Label: "id", Violated: "id is not 8 bytes"}, {Label: "time"}},
	Describe: func(item []byte, _ signal.Reason) (which, has string) {
		var r reading
		r.read(item)
		return fmt.Sprintf("id %x", r.id[:min(len(r.id), 8)]), ""
	},
	Around:  "the request",
	Repeats: 2, Spare: 1 << 20,
}

type reading struct {
	time  uint64 // nanoseconds since the Unix epoch
	id    []byte
	value uint64
}

func (r *reading) read(b []byte) bool {
	*r = reading{}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return false
		}
		switch value := b[lo:hi]; tag {
		case tagTime:
			r.time = signal.Uint64(tag, value)
		case tagID:
			r.id = value
		case tagValue:
			r.value = signal.Uint64(tag, value)
		}
		i = hi
	}
	return true
}

func (r *reading) judge(w signal.Window) signal.Reason {
	switch {
	case len(r.id) != 8:
		return badID
	case !w.Contains(r.time):
		return badTime
	default:
		return signal.Accepted
	}
}

func (r *reading) key() signal.Key {
	k := signal.Key{Time: int64(r.time)}
	copy(k.ID[:], r.id)
	return k
}

func (r *reading) append(req []byte) []byte {
	b := protowire.AppendFixed64([]byte{byte(tagTime)}, r.time)
	b = append(signal.AppendBytesTag(b, tagID, len(r.id)), r.id...)
	b = protowire.AppendVarint(append(b, byte(tagValue)), r.value)
	return append(signal.AppendBytesTag(req, tagReadings, len(b)), b...)
}

// request returns a request of readings with these numbers.
func request(at time.Time, numbers ...uint64) (req []byte) {
	for _, n := range numbers {
		r := reading{time: uint64(at.UnixNano()), id: binary.BigEndian.AppendUint64(nil, n), value: 10 * n}
		req = r.append(req)
	}
	return req
}

const migration = `CREATE TABLE readings_local (time DateTime64(9, 'UTC'), id FixedString(8), value UInt64)
	ENGINE = MergeTree ORDER BY (time, id) SETTINGS non_replicated_deduplication_window = 1000`

var table = columns.Table{
	Signal: readings, Name: "readings_local", New: func() columns.Block { return newBlock() },
	Lookup: columns.Lookup{
		Time:   "time",
		Select: "toUnixTimestamp64Nano(time) AS at, id",
		Wanted: func(keys []signal.Key) proto.Input {
			id := &proto.ColFixedStr{Size: 8}
			for i := range keys {
				id.Append(keys[i].ID[:8])
			}
			return proto.Input{{Name: "id", Data: id}}
		},
		Found: func() (proto.Results, func(func(signal.Key)) error) {
			var at proto.ColInt64
			id := proto.ColFixedStr{Size: 8}
			return proto.Results{{Name: "at", Data: &at}, {Name: "id", Data: &id}}, func(f func(signal.Key)) error {
				for i := range at.Rows() {
					k := signal.Key{Time: at.Row(i)}
					copy(k.ID[:], id.Row(i))
					f(k)
				}
				return nil
			}
		},
	},
}

// block holds rows of readings_local.
type block struct {
	time  *proto.ColDateTime64
	id    proto.ColFixedStr
	value proto.ColUInt64
}

func newBlock() *block {
	return &block{time: new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano), id: proto.ColFixedStr{Size: 8}}
}

func (b *block) Table() string { return table.Name }
func (b *block) Rows() int     { return b.value.Rows() }
func (b *block) Bytes() int    { return 24 * b.Rows() }
func (b *block) Kept() int     { return 24 * b.Rows() }

func (b *block) Input() proto.Input {
	return proto.Input{{Name: "time", Data: b.time}, {Name: "id", Data: &b.id}, {Name: "value", Data: &b.value}}
}

func (b *block) Reset() { b.time.Reset(); b.id.Reset(); b.value.Reset() }

func (b *block) Append(req []byte, src columns.Source) (refused []signal.Refused, err error) {
	if err := readings.Check(req); err != nil {
		return nil, err
	}
	index := -1
	signal.Each(req, tagReadings, func(item []byte) {
		index++
		var r reading
		r.read(item)
		if reason := r.judge(src.Window); reason != signal.Accepted {
			refused = append(refused, signal.Refused{Index: index, Reason: readings.Label(reason)})
			return
		}
		if src.Skip == nil || !src.Skip(index, r.key()) {
			b.row(&r)
		}
	})
	return refused, nil
}

func (b *block) row(r *reading) {
	b.time.AppendRaw(proto.DateTime64(r.time))
	b.id.Append(r.id)
	b.value.Append(r.value)
}

func (b *block) rows(f func(*reading)) {
	for i := range b.Rows() {
		f(&reading{uint64(b.time.Data[i]), b.id.Row(i), b.value.Row(i)})
	}
}

func (b *block) Join(other columns.Block) { other.(*block).rows(b.row) }

func (b *block) Keys(f func(signal.Key)) { b.rows(func(r *reading) { f(r.key()) }) }

package columns_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The time and memory for a request grow linearly with its bytes, whatever it contains.
func TestWorkIsLinear(t *testing.T) {
	const start = 1_700_000_000_000_000_000
	small, large := otlptest.Hostile(otlptest.SmallRequest, start), otlptest.Hostile(otlptest.LargeRequest, start)
	for name := range small {
		t.Run(name, func(t *testing.T) {
			requests := [2][]byte{small[name], large[name]}
			otlptest.Linear(t, 120, requests, func(req []byte) {
				if _, err := columns.NewSpans().Append(req, columns.Source{Agent: "node-1", Window: everything}); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// Pieces of a list count as one list wherever protobuf merges them, and a replaced value
// does not count.
func TestListsInPieces(t *testing.T) {
	one, two, text := marshal(t, array(integer(1))), marshal(t, array(integer(2), kvlist(kv("a", str("b"))))), marshal(t, str("x"))
	object := marshal(t, kvlist(kv("k", boolean(true))))
	tests := map[string]struct {
		values [][]byte // value fields of the KeyValue
		want   string
	}{
		"in one value":             {[][]byte{slices.Concat(one, two, one)}, `[1,2,{"a":"b"},1]`},
		"in several values":        {[][]byte{one, two, one}, `[1,2,{"a":"b"},1]`},
		"replaced by a text":       {[][]byte{one, two, text}, "x"},
		"after a text":             {[][]byte{slices.Concat(one, text, two), one}, `[2,{"a":"b"},1]`},
		"after a list of its kind": {[][]byte{slices.Concat(one, object, one)}, "[1]"},
		"objects":                  {[][]byte{object, nil, slices.Concat(one, object)}, `{"k":true}`},
		"empty":                    {[][]byte{nil, nil}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			attribute := field(1, []byte("k"))
			for _, v := range tc.values {
				attribute = append(attribute, field(2, v)...)
			}
			span := append(marshal(t, newSpan()), field(9, attribute)...)
			rows := decode(t, field(1, field(2, field(2, span))))
			if diff := cmp.Diff([]pair{{"k", tc.want}}, rows[0].Attributes); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// field is a length-delimited field.
func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

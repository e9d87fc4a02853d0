package traces_test

import (
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var (
	walkInputs = flag.Int("walk-inputs", 20_000, "how many inputs TestWalkReadsWhatOthersRead compares")
	walkSeed   = flag.Uint64("walk-seed", 1, "which inputs")
)

// The comparison of FuzzWalk, on inputs drawn by a seed: without the instrumentation of a fuzzer it reads
// many times as many. Half of them are messages built from the schema with what senders may and may not do
// to them, half are earlier inputs with some bytes changed.
func TestWalkReadsWhatOthersRead(t *testing.T) {
	m := newMutator(*walkSeed)
	accepted, read, unknown, spans := 0, 0, 0, 0
	for i := range *walkInputs {
		in := m.next()
		by, err := compareWalk(in)
		if err != nil {
			t.Fatalf("input %d of seed %d, %s: %v", i, *walkSeed, hex.EncodeToString(in), err)
		}
		if by.runtime {
			accepted++
			m.keep(in)
		}
		if by.unknown {
			unknown++
		}
		if by.pdata {
			read++
			spans += by.spans
		}
	}
	t.Logf("%d inputs of seed %d: the official runtime accepts %d, pdata %d with %d spans; %d of these only without fields that the runtime does not know",
		*walkInputs, *walkSeed, accepted, read, spans, unknown)
	if accepted < *walkInputs/5 || accepted > *walkInputs*9/10 || read < *walkInputs/20 {
		t.Errorf("of %d inputs the official runtime accepts %d and pdata %d: they are too much alike", *walkInputs, accepted, read)
	}
}

const (
	poolSize      = 4096
	maxKept       = 2048 // bytes
	maxBuiltDepth = 9    // the schema's values may nest without end
)

// mutator makes inputs.
type mutator struct {
	rng  *rand.Rand
	pool [][]byte
	buf  []byte
	form protoreflect.MessageDescriptor
}

func newMutator(seed uint64) *mutator {
	m := &mutator{rng: rand.New(rand.NewPCG(seed, 0x77616c6b)), form: (&coltracepb.ExportTraceServiceRequest{}).ProtoReflect().Descriptor()}
	m.pool = walkSeeds()
	return m
}

// next returns an input that is valid until the next call.
func (m *mutator) next() []byte {
	if m.rng.IntN(2) == 0 {
		m.buf = m.build(m.buf[:0], m.form, 0)
		return m.buf
	}
	b := append(m.buf[:0], m.pick()...)
	for range 1 + m.rng.IntN(4) {
		b = m.change(b)
	}
	m.buf = b
	return b
}

// keep makes in a source of further inputs.
func (m *mutator) keep(in []byte) {
	switch {
	case len(in) == 0 || len(in) > maxKept:
	case len(m.pool) < poolSize:
		m.pool = append(m.pool, append([]byte(nil), in...))
	default:
		i := m.rng.IntN(poolSize)
		m.pool[i] = append(m.pool[i][:0:0], in...)
	}
}

func (m *mutator) pick() []byte { return m.pool[m.rng.IntN(len(m.pool))] }

// span draws a piece of b.
func (m *mutator) span(b []byte) (from, to int) {
	from = m.rng.IntN(len(b))
	return from, from + 1 + m.rng.IntN(min(len(b)-from, 64))
}

// change changes b in one place.
func (m *mutator) change(b []byte) []byte {
	if len(b) == 0 {
		return append(b, byte(m.rng.Uint32()))
	}
	i := m.rng.IntN(len(b))
	switch m.rng.IntN(8) {
	case 0:
		b[i] ^= 1 << m.rng.IntN(8)
	case 1:
		b[i] = byte(m.rng.Uint32())
	case 2: // another wire type
		b[i] = b[i]&^7 | byte(m.rng.IntN(8))
	case 3: // a longer or shorter value
		b[i] += byte(m.rng.IntN(5)) - 2
	case 4:
		from, to := m.span(b)
		b = append(b[:from], b[to:]...)
	case 5:
		from, to := m.span(b)
		b = insert(b, i, b[from:to])
	case 6:
		if other := m.pick(); len(other) > 0 {
			from, to := m.span(other)
			b = insert(b, i, other[from:to])
		}
	default:
		b = insert(b, i, m.varint(nil, m.rng.Uint64()>>m.rng.IntN(64)))
	}
	return b
}

func insert(b []byte, at int, piece []byte) []byte {
	piece = append([]byte(nil), piece...)
	b = append(b, piece...)
	copy(b[at+len(piece):], b[at:])
	copy(b[at:], piece)
	return b
}

// varint appends v, now and then in more bytes than it needs.
func (m *mutator) varint(b []byte, v uint64) []byte {
	b = protowire.AppendVarint(b, v)
	for n := protowire.SizeVarint(v); m.rng.IntN(16) == 0 && n < 10; n++ {
		b[len(b)-1] |= 0x80
		b = append(b, 0)
	}
	return b
}

// build appends a message of this form.
func (m *mutator) build(b []byte, form protoreflect.MessageDescriptor, depth int) []byte {
	fields := form.Fields()
	for range m.rng.IntN(5) {
		field := fields.Get(m.rng.IntN(fields.Len()))
		for depth < 3 && !field.IsList() && m.rng.IntN(4) > 0 { // towards the spans
			field = fields.Get(m.rng.IntN(fields.Len()))
		}
		number, kind := field.Number(), wireType(field)
		switch m.rng.IntN(40) {
		case 0:
			number = protowire.Number(1 + m.rng.IntN(1<<m.rng.IntN(29)))
		case 1:
			kind = protowire.Type(m.rng.IntN(6))
		}
		b = m.varint(b, protowire.EncodeTag(number, kind))
		switch kind {
		case protowire.VarintType:
			b = m.varint(b, m.rng.Uint64()>>m.rng.IntN(64))
		case protowire.Fixed32Type:
			b = protowire.AppendFixed32(b, m.rng.Uint32())
		case protowire.Fixed64Type:
			b = protowire.AppendFixed64(b, m.rng.Uint64())
		case protowire.BytesType:
			value := m.value(field, depth)
			b = append(m.varint(b, uint64(len(value))), value...)
		case protowire.StartGroupType:
			if depth < maxBuiltDepth {
				b = m.build(b, form, depth+1)
			}
			b = protowire.AppendTag(b, number, protowire.EndGroupType)
		case protowire.EndGroupType: // of no group
		}
	}
	return b
}

// value returns what stands in a field after its length.
func (m *mutator) value(field protoreflect.FieldDescriptor, depth int) []byte {
	switch {
	case field.Message() != nil && depth < maxBuiltDepth:
		return m.build(nil, field.Message(), depth+1)
	case field.Message() != nil:
		return nil
	case field.Kind() == protoreflect.BytesKind && m.rng.IntN(20) > 0:
		return m.bytes([]int{0, 8, 16}[m.rng.IntN(3)])
	}
	text := m.bytes(m.rng.IntN(12))
	if m.rng.IntN(30) > 0 {
		for i := range text {
			text[i] = 'a' + text[i]%26
		}
		if m.rng.IntN(4) == 0 {
			text = append(text, "é€😀"...)
		}
	}
	return text
}

func (m *mutator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.rng.Uint32())
	}
	return b
}

// wireType is how a field of its kind stands on the wire.
func wireType(field protoreflect.FieldDescriptor) protowire.Type {
	switch field.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	default:
		return protowire.VarintType
	}
}

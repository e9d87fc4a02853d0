package signal

// Tags of OTLP's common messages, which are those of
// opentelemetry/proto/common/v1/common.proto.
const (
	TagKeyValueKey   = 1<<3 | Bytes
	TagKeyValueValue = 2<<3 | Bytes

	TagAnyValueString = 1<<3 | Bytes
	TagAnyValueBool   = 2<<3 | Varint
	TagAnyValueInt    = 3<<3 | Varint
	TagAnyValueDouble = 4<<3 | Fixed64
	TagAnyValueArray  = 5<<3 | Bytes
	TagAnyValueKvlist = 6<<3 | Bytes
	TagAnyValueBytes  = 7<<3 | Bytes

	// TagValues is the only field of both ArrayValue and KeyValueList.
	TagValues = 1<<3 | Bytes
)

// KeyValue is OTLP's attribute: a key and a value of any type.
var KeyValue = &Message{fields: [16]field{1: {text: true}, 2: {sub: anyValue}}}

var (
	anyValue     = &Message{}
	arrayValue   = &Message{fields: [16]field{1: {sub: anyValue}}}
	keyValueList = &Message{fields: [16]field{1: {sub: KeyValue}}}
)

func init() {
	// An AnyValue holds lists of AnyValues: the only cycle, closed here.
	anyValue.fields = [16]field{1: {text: true}, 5: {sub: arrayValue}, 6: {sub: keyValueList}}
}

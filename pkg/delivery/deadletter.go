package delivery

import (
	"strconv"

	"github.com/metaflowys/metaflow-server/schema"
)

// DeadLetter says where a record of the dead-letter topic came from and why it
// is there. Its value is an OTLP request with the spans concerned, or the bytes that
// are none.
type DeadLetter struct {
	Cause     string
	Topic     string
	Partition int
	Offset    int64
	Truncated int64 // bytes of a value that is left out, because Kafka refused it
	Meta      Meta  // of the record it came from
}

// Headers returns the headers that carry d.
func (d DeadLetter) Headers() []Header {
	meta := d.Meta
	meta.HasHash = false // it was the whole record's
	headers := append(meta.Headers(),
		Header{schema.HeaderCause, []byte(d.Cause)},
		Header{schema.HeaderTopic, []byte(d.Topic)},
		Header{schema.HeaderPartition, strconv.AppendInt(nil, int64(d.Partition), 10)},
		Header{schema.HeaderOffset, strconv.AppendInt(nil, d.Offset, 10)},
	)
	if d.Truncated > 0 {
		headers = append(headers, Header{schema.HeaderTruncated, strconv.AppendInt(nil, d.Truncated, 10)})
	}
	return headers
}

// Set takes one header into d. Unknown keys are ignored.
func (d *DeadLetter) Set(key string, value []byte) {
	switch key {
	case schema.HeaderCause:
		d.Cause = string(value)
	case schema.HeaderTopic:
		d.Topic = string(value)
	case schema.HeaderPartition:
		d.Partition, _ = strconv.Atoi(string(value))
	case schema.HeaderOffset:
		d.Offset, _ = strconv.ParseInt(string(value), 10, 64)
	case schema.HeaderTruncated:
		d.Truncated, _ = strconv.ParseInt(string(value), 10, 64)
	default:
		d.Meta.Set(key, value)
	}
}

package otlphttp

import "bytes"

// Upper bounds for the memory of decoded JSON. The most expensive text for its length is
// a list of {} or null, elements without fields. The figures are above what a test
// measures.
const (
	jsonElementBytes = 120
	jsonObjectBytes  = 96
)

// jsonMemory bounds the memory for converting a JSON body to protobuf.
func jsonMemory(body []byte) int64 {
	elements, objects := bytes.Count(body, []byte{','}), bytes.Count(body, []byte{'{'})
	return 6*int64(len(body)) + jsonElementBytes*int64(elements) + jsonObjectBytes*int64(objects)
}

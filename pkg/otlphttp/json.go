package otlphttp

import "bytes"

// What the text of a request becomes in memory at most. What costs most for its
// length is a list of nothing but {} or null: elements without any field. The figures are
// above what a test measures.
const (
	jsonElementBytes = 120
	jsonObjectBytes  = 96
)

// jsonMemory bounds the memory that turning JSON into protobuf takes.
func jsonMemory(body []byte) int64 {
	elements, objects := bytes.Count(body, []byte{','}), bytes.Count(body, []byte{'{'})
	return 6*int64(len(body)) + jsonElementBytes*int64(elements) + jsonObjectBytes*int64(objects)
}

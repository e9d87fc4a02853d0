package otlphttp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
)

// What the text of a request becomes in memory at most. What costs most for its
// length is a list of nothing but {} or null: elements without any field. The figures are
// a tenth above what a test measures.
const (
	jsonElementBytes = 200
	jsonObjectBytes  = 96
)

// jsonMemory bounds the memory that protobufOf takes: the messages, the texts in
// them, and the protobuf made of them.
func jsonMemory(body []byte) int64 {
	elements, objects := bytes.Count(body, []byte{','}), bytes.Count(body, []byte{'{'})
	return 2*int64(len(body)) + jsonElementBytes*int64(elements) + jsonObjectBytes*int64(objects)
}

// protobufOf turns a request in OTLP's JSON into protobuf.
func protobufOf(body []byte) ([]byte, error) {
	// The decoder stops at the end of the first value, and takes texts as they are.
	if !utf8.Valid(body) {
		return nil, errors.New("not UTF-8")
	}
	if err := checkJSON(body); err != nil {
		return nil, err
	}
	req := ptraceotlp.NewExportRequest()
	if err := req.UnmarshalJSON(body); err != nil {
		return nil, err
	}
	return req.MarshalProto()
}

// checkJSON says what is wrong with body as JSON, and where.
func checkJSON(body []byte) error {
	if json.Valid(body) {
		return nil
	}
	var raw json.RawMessage
	err := json.Unmarshal(body, &raw)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("byte %d: %w", syntax.Offset, err)
	}
	return err
}

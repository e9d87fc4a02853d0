package otlphttp

import (
	"runtime"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
)

// The memory granted for JSON covers what is allocated for it, whatever its structure.
func TestJSONMemoryIsABound(t *testing.T) {
	const n = 200_000
	list := func(before, element, after string) string {
		return before + element + strings.Repeat(","+element, n) + after
	}
	spans := func(span string) string { return list(`{"resourceSpans":[{"scopeSpans":[{"spans":[`, span, `]}]}]}`) }
	attributes := func(kv string) string { return list(`{"resourceSpans":[{"resource":{"attributes":[`, kv, `]}}]}`) }
	for name, text := range map[string]string{
		"resources":    list(`{"resourceSpans":[`, `{}`, `]}`),
		"null":         list(`{"resourceSpans":[`, `null`, `]}`),
		"scopes":       list(`{"resourceSpans":[{"scopeSpans":[`, `{}`, `]}]}`),
		"spans":        spans(`{}`),
		"named spans":  spans(`{"name":"GET /"}`),
		"events":       spans(`{"events":[{}]}`),
		"links":        spans(`{"links":[{}]}`),
		"attributes":   attributes(`{}`),
		"texts":        attributes(`{"key":"k","value":{"stringValue":"v"}}`),
		"lists":        attributes(`{"value":{"arrayValue":{"values":[{}]}}}`),
		"numbers":      attributes(`{"value":{"intValue":1}}`),
		"one in other": `{"resourceSpans":[{"resource":{"attributes":[{"value":` + strings.Repeat(`{"arrayValue":{"values":[`, 3000) + strings.Repeat("]}}", 3000) + `}]}}]}`,
		"entities":     list(`{"resourceSpans":[{"resource":{"entityRefs":[`, `{}`, `]}}]}`),
		"keys":         list(`{"resourceSpans":[{"resource":{"entityRefs":[{"idKeys":[`, `""`, `]}]}}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(text)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, _, err := otlpjson.Decode(body); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			used, granted := int64(after.TotalAlloc-before.TotalAlloc), jsonMemory(body)
			t.Logf("%d bytes of JSON: %d allocated, %d granted, %.0f per element", len(body), used, granted, float64(used)/n)
			if used > granted {
				t.Errorf("%d bytes of JSON allocate %d, %d granted", len(body), used, granted)
			}
		})
	}
}

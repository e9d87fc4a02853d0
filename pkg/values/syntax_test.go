package values_test

import (
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// The real parser gives its errors a wrong line or none.
func TestSyntaxErrorsHaveTheirLine(t *testing.T) {
	const tab = "a tab in the indentation, where YAML allows only spaces"
	for text, want := range map[string]struct {
		line  int
		cause string
	}{
		"\tkafka: 1\n":                         {1, tab},
		"kafka:\n\tbrokers: x\n":               {2, tab},
		"a: 1\nkafka:\n  b: 1\n \tc: 2\n":      {4, tab},
		"a: 1\nb: \x01\n":                      {0, "control characters are not allowed"},
		"a: b: c":                              {1, "mapping values are not allowed in this context"},
		"a: 1\nb: @x\n":                        {2, "found character that cannot start any token"},
		"a:\n  - x\n\n# \tnothing\n\t- y: 1\n": {5, tab},
	} {
		err := yaml.Unmarshal([]byte(text), new(yaml.Node))
		if err == nil {
			t.Errorf("%q is valid", text)
			continue
		}
		if line, cause := values.SyntaxError([]byte(text), err); line != want.line || cause != want.cause {
			t.Errorf("%q: line %d, %s (from %v); want line %d, %s", text, line, cause, err, want.line, want.cause)
		}
	}
}

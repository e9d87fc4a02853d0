package tempo

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/query"
)

// What somebody types narrows names and values by the conditions that are complete.
func TestFilter(t *testing.T) {
	name := query.Compare{Field: query.Field{Name: "name"}, Op: "=", Value: query.Str("a")}
	failed := query.Compare{Field: query.Field{Name: "status"}, Op: "=", Value: query.Keyword("error")}
	verdict := query.Compare{Field: query.Field{Name: "network.verdict"}, Op: "=", Value: query.Str("reset")}
	tricky := query.Compare{Field: query.Field{Name: "name"}, Op: "=", Value: query.Str(`&& } || { "`)}
	for text, want := range map[string]query.Expr{
		``:                                      nil,
		`{}`:                                    nil,
		`{ true }`:                              nil,
		`{ name = "a" }`:                        name,
		`{ name = "a" || status = error }`:      query.Or{name, failed},
		`{ network.verdict = "reset" }`:         verdict,
		`{`:                                     nil,
		`}`:                                     nil,
		`{ name = `:                             nil,
		`{ name = "a`:                           nil,
		`{ name = "a"`:                          query.And{name},
		`{ name = "a" && `:                      query.And{name},
		`{ name = "a" && status }`:              query.And{name}, // understood by the grammar, not as a condition
		`{ name = "a" && status = }`:            query.And{name},
		`{ name = "a" && span.x =~ "(" }`:       query.And{name},
		`{ name = "a" && kind = error }`:        query.And{name},
		`{ name = "a" && duration > 3 }`:        query.And{name},
		`{ resource. = "x" && status = error }`: query.And{failed},
		`{ x && name = "a" && y && status=error && }`:             query.And{name, failed},
		`{ name = "a" } | rate()`:                                 query.And{name},
		"{ name = `&& } || { \"` && x }":                          query.And{tricky},
		`{ name = "&& } || { \"" && x }`:                          query.And{tricky},
		`{ name = "a" || status = }`:                              nil,
		`{ name = "a" && (status = error || x) }`:                 nil,
		`{ name = "a" && (x && status = error) }`:                 query.And{name},
		`{ name = "a" } >> { status = error }`:                    nil,
		`{ name = "a" } && { status = }`:                          nil,
		`{ name = "a" } || `:                                      nil,
		`{ network.verdict = "reset" || name = "a" }`:             nil,
		`{ name = "a" && ` + strings.Repeat("x", maxQueryBytes):   nil,
		`{ x && ` + strings.Repeat(`status=error&&`, 500) + `x }`: query.And(repeat(failed, query.MaxConditions)),
	} {
		if diff := cmp.Diff(want, filterOf(text)); diff != "" {
			t.Errorf("%.60s: -want +got:\n%s", text, diff)
		}
	}
}

func repeat(e query.Expr, n int) (list []query.Expr) {
	for range n {
		list = append(list, e)
	}
	return list
}

// FuzzFilter holds filterOf to its contract for a text from anyone: no panic, and a condition
// that Keys and Values understand.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{`{ name = "a" && `, `{ .a = "b" && duration > 1ms && x } | select(.e)`, "{ name = `x` && } >> {", `{ "\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if where := filterOf(text); query.Check(where) != nil {
			t.Errorf("%q: %v", text, query.Check(where))
		}
	})
}

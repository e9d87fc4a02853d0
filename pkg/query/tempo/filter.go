package tempo

import (
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/query"
)

// filterOf returns the condition that narrows names and values, or nil for none. They complete a
// query that somebody types, so it may be unfinished: then those conditions count that can be
// understood, as in Tempo, if they are joined by && within one pair of braces.
func filterOf(text string) query.Expr {
	if len(text) > maxQueryBytes {
		return nil
	}
	if where, ok := understood(text); ok {
		if everything(where) {
			return nil
		}
		return where
	}
	var and query.And
	for _, part := range conjuncts(text) {
		if where, ok := understood("{" + part + "}"); ok && !everything(where) && len(and) < query.MaxConditions {
			and = append(and, where)
		}
	}
	if len(and) == 0 {
		return nil
	}
	return and
}

func understood(text string) (query.Expr, bool) {
	p, err := parse(text)
	if err != nil || query.Check(p.where) != nil {
		return nil, false
	}
	return p.where, true
}

// everything reports whether a condition is that of {}.
func everything(where query.Expr) bool {
	and, ok := where.(query.And)
	return ok && len(and) == 0
}

// conjuncts returns what stands between the && of a query with one pair of braces, which may
// still be open. It returns nothing where a condition might be true without the others.
func conjuncts(text string) (parts []string) {
	_, text, _ = strings.Cut(text, "{")
	quote, begin := byte(0), 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote != 0:
			if c == '\\' && quote == '"' {
				i++
			} else if c == quote {
				quote = 0
			}
		case c == '"' || c == '`':
			quote = c
		case c == '{' || strings.HasPrefix(text[i:], "||"):
			return nil
		case c == '}':
			if strings.Contains(text[i:], "{") || strings.Contains(text[i:], "||") {
				return nil
			}
			return append(parts, text[begin:i])
		case strings.HasPrefix(text[i:], "&&"):
			parts = append(parts, text[begin:i])
			i++
			begin = i + 1
		}
	}
	return append(parts, text[begin:])
}

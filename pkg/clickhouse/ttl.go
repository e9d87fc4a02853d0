package clickhouse

import (
	"regexp"
	"slices"
	"strings"
)

// A table's TTL is a list of rules: ClickHouse deletes rows, moves them to a
// volume, compresses them anew, or rolls them up. The server owns one of them,
// the rule that deletes every row; all others are the operator's.

// withRetention returns ttl with retention as the rule that deletes rows, or
// without such a rule where retention is empty. Other rules stay as they are.
func withRetention(ttl, retention string) string {
	rules := splitTTL(ttl)
	at := max(slices.IndexFunc(rules, deletesAll), 0)
	rules = slices.DeleteFunc(rules, deletesAll)
	if retention != "" {
		rules = slices.Insert(rules, min(at, len(rules)), retention)
	}
	return strings.Join(rules, ", ")
}

var (
	otherRule  = regexp.MustCompile(`\b(TO (DISK|VOLUME)|RECOMPRESS|GROUP BY|WHERE)\b`)
	assignment = regexp.MustCompile(`^\s*\S+ = `)
)

// deletesAll reports whether a rule deletes every row whose time has come.
func deletesAll(rule string) bool { return !otherRule.MatchString(outer(rule)) }

// splitTTL returns the rules of a TTL as ClickHouse shows it. A GROUP BY rule
// has commas of its own: GROUP BY a, b SET c = max(c), d = sum(d).
func splitTTL(ttl string) []string {
	var rules []string
	from := 0
	shown := outer(ttl)
	for i := 0; i <= len(shown); i++ {
		if i < len(shown) && shown[i] != ',' {
			continue
		}
		part := strings.TrimSpace(ttl[from:i])
		if last := len(rules) - 1; last >= 0 && continues(outer(rules[last]), outer(part)) {
			rules[last] += ", " + part
		} else if part != "" {
			rules = append(rules, part)
		}
		from = i + 1
	}
	return rules
}

// continues reports whether part belongs to the rule before it.
func continues(rule, part string) bool {
	_, group, ok := strings.Cut(rule, " GROUP BY ")
	if !ok {
		return false
	}
	return !strings.Contains(group, " SET ") || assignment.MatchString(part)
}

// outer returns sql of the same length with blanks for everything between
// parentheses, brackets or quotes.
func outer(sql string) string {
	blanked := []byte(sql)
	depth := 0
	var quote byte
	for i := 0; i < len(sql); i++ {
		c := sql[i]
		inside := depth > 0 || quote != 0
		switch {
		case quote != 0 && c == '\\':
			blanked[i] = ' '
			i++ // whatever it escapes
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '`' || c == '"':
			quote = c
		case c == '(' || c == '[':
			depth++
		case c == ')' || c == ']':
			depth--
		}
		if inside && i < len(sql) {
			blanked[i] = ' '
		}
	}
	return string(blanked)
}

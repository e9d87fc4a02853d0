package mcp

import (
	"fmt"
	"slices"
	"strings"
)

// reads refuses statements that do more than read tables. ClickHouse refuses changes by
// itself, but a user with readonly = 1 may still end its own queries, read files with the
// function file(), open connections with DESCRIBE url(...), and lift a limit with SETTINGS
// max_memory_usage = DEFAULT, which no constraint of settings holds back.
//
// It need not understand SQL, but must see each name that ClickHouse sees. Syntax that hides
// names, such as escapes in quoted names, is refused.
func reads(statement string) error {
	tokens, err := tokenize(statement)
	if err != nil {
		return err
	}
	for i, t := range tokens {
		if refusedName(t, i+1 < len(tokens) && tokens[i+1].is("(")) {
			return fmt.Errorf("%s is refused: it can reach files, other hosts or hidden SQL; choose another name if it is yours", t.text)
		}
		if i > 0 && tokens[i-1].is("=") && t.kind == bareWord && strings.EqualFold(t.text, "DEFAULT") {
			return fmt.Errorf("= %s is refused: it can lift the limits of a query; quote it if it is a name", t.text)
		}
	}
	rest := tokens
	for len(rest) > 0 && rest[0].is("(") {
		rest = rest[1:]
	}
	word := ""
	if len(rest) > 0 && rest[0].kind == bareWord {
		word = strings.ToUpper(rest[0].text)
	}
	switch word {
	case "SELECT", "WITH", "EXPLAIN":
		return nil
	case "DESCRIBE", "DESC":
		if describesTable(rest[1:]) {
			return nil
		}
		return fmt.Errorf("%s takes a table, as in %s metaflow.spans, or a SELECT in parentheses", word, word)
	case "SHOW", "EXISTS":
		if !slices.ContainsFunc(rest, func(t token) bool { return t.is("(") }) {
			return nil
		}
		return fmt.Errorf("%s takes names and no parentheses, as in %s TABLE metaflow.spans", word, word)
	}
	return fmt.Errorf("only SELECT, WITH, SHOW, DESCRIBE, EXISTS and EXPLAIN are allowed, not %.40q", statement)
}

// describesTable reports whether the words after DESCRIBE are [TABLE] [db.]name or a SELECT
// in parentheses.
func describesTable(rest []token) bool {
	if len(rest) > 1 && rest[0].kind == bareWord && strings.EqualFold(rest[0].text, "TABLE") {
		rest = rest[1:]
	}
	if len(rest) > 1 && rest[0].is("(") {
		return rest[1].kind == bareWord && (strings.EqualFold(rest[1].text, "SELECT") || strings.EqualFold(rest[1].text, "WITH"))
	}
	if len(rest) > 1 && rest[len(rest)-1].is(";") {
		rest = rest[:len(rest)-1]
	}
	named := len(rest) > 0 && rest[0].isName()
	return named && (len(rest) == 1 || len(rest) == 3 && rest[1].is(".") && rest[2].isName())
}

// outsideFunctions reach files or other hosts. They need no parentheses to be called:
// arrayMap(file, paths) and * APPLY file do so too.
var outsideFunctions = []string{"file", "catboostevaluate", "aiclassify", "aiembed", "aiextract", "aigenerate", "aitranslate"}

// outsideTables are table functions that reach files or other hosts, or run SQL from a string.
var outsideTables = []string{
	"cluster", "clusterallreplicas", "cosn", "dictionary", "eval", "executable", "filecluster", "filesystem", "fuzzquery", "gcs", "input", "jdbc", "mongodb", "mysql",
	"odbc", "oss", "postgresql", "redis", "remote", "remotesecure", "sqlite", "url", "urlcluster", "ytsaurus",
}

// outsideFamilies are prefixes of table functions that exist for several storages.
var outsideFamilies = []string{"azure", "deltalake", "hdfs", "hudi", "iceberg", "paimon", "s3"}

func refusedName(t token, called bool) bool {
	if !t.isName() {
		return false
	}
	name := strings.ToLower(t.text)
	return slices.Contains(outsideFunctions, name) || called && (slices.Contains(outsideTables, name) ||
		slices.ContainsFunc(outsideFamilies, func(family string) bool { return strings.HasPrefix(name, family) }))
}

type kind int

const (
	symbol kind = iota
	bareWord
	quotedName
	literal
)

// token is a name without its quotes, a symbol of one byte, or a string literal.
type token struct {
	kind kind
	text string
}

func (t token) is(s string) bool { return t.kind == symbol && t.text == s }
func (t token) isName() bool     { return t.kind == bareWord || t.kind == quotedName }

// tokenize splits a statement as ClickHouse does and drops comments. Outside of strings,
// quoted names and comments it accepts ASCII only, because ClickHouse takes typographic
// quotes for quotes.
func tokenize(s string) (tokens []token, err error) {
	for len(s) > 0 {
		switch c := s[0]; {
		case strings.ContainsRune(" \t\r\n\v\f", rune(c)):
			s = s[1:]
		case strings.HasPrefix(s, "--"):
			_, s, _ = strings.Cut(s, "\n")
		case strings.HasPrefix(s, "/*"):
			comment, rest, closed := strings.Cut(s[2:], "*/")
			if !closed || strings.Contains(comment, "/*") {
				return nil, fmt.Errorf("the comment %.40q does not end, or holds another one", s)
			}
			s = rest
		case c == '\'' || c == '"' || c == '`':
			n := quoted(s)
			if n < 0 {
				return nil, fmt.Errorf("the quote of %.40q does not end", s)
			}
			t := token{quotedName, s[1 : n-1]}
			if c == '\'' {
				t.kind = literal
			} else if strings.Contains(t.text, `\`) {
				return nil, fmt.Errorf("the quoted name %.40q holds a backslash, which is not allowed", t.text)
			}
			tokens, s = append(tokens, t), s[n:]
		case inWord(c):
			n := 1
			for n < len(s) && inWord(s[n]) {
				n++
			}
			tokens, s = append(tokens, token{bareWord, s[:n]}), s[n:]
		case c < ' ' || c >= 0x7f || c == '$' || c == '#' || strings.HasPrefix(s, "//"):
			return nil, fmt.Errorf("at %.20q: outside of quotes and comments only ASCII is allowed, without $, # and //", s)
		default:
			tokens, s = append(tokens, token{symbol, s[:1]}), s[1:]
		}
	}
	return tokens, nil
}

// quoted returns the length of the quoted text at the start of s, quotes included, or -1 if
// it does not end.
func quoted(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] == s[0] && i+1 < len(s) && s[i+1] == s[0]:
			i++
		case s[i] == s[0]:
			return i + 1
		}
	}
	return -1
}

func inWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

package semconv

import "bytes"

// longestVerb bounds the first word of a statement: the longest command of
// Redis, SUNSUBSCRIBE, and the longest verb of SQL below have 12 and 8.
const longestVerb = 20

// pipeline is what the conventions for Redis call several commands sent at
// once.
var pipeline = []byte("PIPELINE")

// resolveDatabase follows the conventions for database spans, of 1.4 to 1.25,
// 1.26 to 1.28, and 1.30 and later.
func (s *Span) resolveDatabase() {
	a := &s.attributes
	s.Protocol = s.protocol(a.pick(keyDBSystemName, keyDBSystem))
	s.ResponseCode = a.pick(keyDBResponseStatusCode, keyDBCosmosStatusCode)
	s.Method = s.databaseMethod()
	s.Endpoint = s.databaseEndpoint()
}

func (s *Span) databaseMethod() []byte {
	a := &s.attributes
	if operation := a.pick(keyDBOperationName, keyDBCosmosOperationType); operation != nil {
		return operation
	}
	if summary := a.values[keyDBQuerySummary]; summary != nil {
		if word := firstWord(summary); len(word) <= longestVerb && isWord(word) {
			return word
		}
	}
	return s.statementVerb(a.pick(keyDBQueryText, keyDBStatement))
}

// statementVerb returns the verb of a statement in upper case: the command for Redis and
// compatible systems, otherwise a well-known verb of SQL. It returns nil for a statement
// that begins otherwise, with a comment or as JSON, because its first word may be user
// data.
func (s *Span) statementVerb(statement []byte) []byte {
	word := firstWord(statement)
	if len(word) > longestVerb || !isWord(word) {
		return nil
	}
	verb := s.verb[:len(word)]
	for i, c := range word {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		verb[i] = c
	}
	switch string(s.Protocol) {
	case "redis", "valkey":
		if bytes.IndexByte(statement, '\n') >= 0 {
			return pipeline
		}
		return verb
	}
	switch string(verb) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "UPSERT",
		"CREATE", "ALTER", "DROP", "TRUNCATE", "GRANT", "REVOKE", "ANALYZE", "VACUUM", "OPTIMIZE",
		"BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "LOCK",
		"CALL", "EXEC", "EXECUTE", "PREPARE", "WITH", "SET", "USE", "SHOW", "EXPLAIN", "DESCRIBE", "COPY", "VALUES":
		return verb
	}
	return nil
}

// firstWord returns the text before the first white space, semicolon or bracket.
func firstWord(text []byte) []byte {
	for i, c := range text {
		switch c {
		case ' ', '\t', '\n', '\r', ';', '(':
			return text[:i]
		}
	}
	return text
}

// databaseEndpoint returns the most specific name of the called object that the
// attributes give without looking into a statement.
func (s *Span) databaseEndpoint() []byte {
	a := &s.attributes
	namespace := a.pick(keyDBNamespace, keyDBRedisIndex)
	if collection := a.pick(keyDBCollectionName, keyDBStoredProcedureName); collection != nil {
		if namespace == nil || qualifiedBy(collection, namespace) {
			return collection
		}
		return s.join(namespace, '.', collection)
	}
	if summary := a.values[keyDBQuerySummary]; summary != nil {
		return summary
	}
	if isNumber(namespace) { // the index of a Redis database
		return nil
	}
	return namespace
}

// qualifiedBy reports whether collection begins with namespace already.
func qualifiedBy(collection, namespace []byte) bool {
	return len(collection) > len(namespace) && collection[len(namespace)] == '.' && bytes.HasPrefix(collection, namespace)
}

func isNumber(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) > 0
}

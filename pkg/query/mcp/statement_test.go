package mcp

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// Statements that read tables pass, and no spelling calls a function that reaches outside.
func TestReads(t *testing.T) {
	for _, statement := range []string{
		"SELECT 1",
		"(SELECT 1) UNION ALL (SELECT 2);",
		"-- why\nWITH 1 AS x SELECT x",
		"/* file('/etc/passwd') */ SELECT 'file(1)', 'it''s', 'a\\'b file(' FROM t",
		"SELECT attributes['url.full'] AS url, URLHash(url, 1), s3 FROM metaflow.spans -- file",
		"SELECT `a``b`, \"c d\" FROM metaflow.trace_network(trace_id = 'x')",
		"SELECT 'größer'",
		"SELECT \"default\" FROM default.t WHERE a = \"default\" AND b = 'default'",
		"DESCRIBE metaflow.spans", "DESC TABLE spans;", "desc (select 1)", "DESCRIBE TABLE (WITH 1 AS x SELECT x)", "DESC `metaflow`.\"spans\"",
		"SHOW TABLES FROM metaflow LIKE 'sp%'", "SHOW CREATE TABLE metaflow.spans", "EXISTS TABLE metaflow.spans", "EXPLAIN SELECT 1",
	} {
		if err := reads(statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	for statement, want := range map[string]string{
		"":                                                        "only SELECT",
		"KILL QUERY WHERE 1":                                      "only SELECT",
		"-- SELECT\nSYSTEM STOP MERGES":                           "only SELECT",
		"`SELECT` 1":                                              "only SELECT",
		"SELECT file('/etc/passwd')":                              "file is refused",
		"SELECT FILE /* x */ ('/etc/passwd')":                     "FILE is refused",
		"SELECT `file`('/etc/passwd')":                            "file is refused",
		"SELECT \"file\"('/etc/passwd')":                          "file is refused",
		"SELECT `fil\\x65`('/etc/passwd')":                        "backslash",
		"SELECT arrayMap(file, ['/etc/passwd'])":                  "file is refused",
		"SELECT * APPLY file FROM (SELECT '/x')":                  "file is refused",
		"SELECT $x$ ' $x$, file('/x'), $$ ' $$":                   "without $",
		"SELECT ‘'‘, file('/x'), ‘'’":                             "only ASCII",
		"SELECT 1 #! '\n, file('/x') --'":                         "without $, #",
		"SELECT 1 // '\n, file('/x') --'":                         "and //",
		"SELECT /* /* */ 1, ' */ file('/x') --'":                  "comment",
		"SELECT 'a\\\\', file('/x'), 'b'":                         "file is refused",
		"SELECT 'a":                                               "does not end",
		"SELECT 1 /* a":                                           "does not end",
		"SELECT 1\x00":                                            "only ASCII",
		"SELECT 1 SETTINGS max_memory_usage = DEFAULT":            "= DEFAULT is refused",
		"SELECT * FROM (SELECT 1 SETTINGS readonly==/**/default)": "= default is refused",
		"EXPLAIN TABLE OVERRIDE mysql('h:1')":                     "mysql is refused",
		"SELECT * FROM eval('SELECT 1')":                          "eval is refused",
		"SELECT * FROM icebergS3Cluster('a', 'b')":                "icebergS3Cluster is refused",
		"DESC url('http://127.0.0.1:1/')":                         "url is refused",
		"DESC TABLE numbers(1)":                                   "takes a table",
		"DESC (numbers(1))":                                       "takes a table",
		"DESC metaflow.spans.x":                                   "takes a table",
		"DESCRIBE":                                                "takes a table",
		"SHOW COLUMNS FROM numbers(1)":                            "no parentheses",
		"SHOW TABLES WHERE name = upper(database())":              "no parentheses",
	} {
		if err := reads(statement); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", statement, err, want)
		}
	}
}

// Every table function of the engine is refused or known to stay within its tables, so that
// a new version of ClickHouse brings no way outside unseen.
func TestTableFunctionsAreKnown(t *testing.T) {
	inside := " SQLStandardValues format fuzzJSON generateRandom generateSeries generate_series loop merge mergeTreeAnalyzeIndexes mergeTreeAnalyzeIndexesUUID mergeTreeIndex " +
		"mergeTreeProjection mergeTreeTextIndex null numbers numbers_mt primes prometheusQuery prometheusQueryRange timeSeriesData timeSeriesMetrics timeSeriesSamples " +
		"timeSeriesSelector timeSeriesTags values view viewExplain viewIfPermitted zeros zeros_mt "
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{chtest.Start(t, chengine.Options{}).NativeAddr()}
	db, err := clickhouse.OpenReader(cfg, clickhouse.ReadLimits{Time: testTime, MemoryBytes: 1 << 30, Rows: 10_000, Bytes: 1 << 20, AtOnce: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found, err := db.Table(t.Context(), "SELECT name FROM system.table_functions", 1000, 1<<20)
	if err != nil || len(found.Rows) < 50 {
		t.Fatalf("%d table functions: %v", len(found.Rows), err)
	}
	for _, row := range found.Rows {
		var name string
		if err := json.Unmarshal(row[0], &name); err != nil {
			t.Fatal(err)
		}
		if refused, known := refusedName(token{bareWord, name}, true), strings.Contains(inside, " "+name+" "); refused == known {
			t.Errorf("table function %s: refused %t, known to stay inside %t", name, refused, known)
		}
	}
}

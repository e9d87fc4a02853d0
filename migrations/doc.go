// Package migrations holds the numbered SQL that builds MetaFlow's database in
// ClickHouse, and renders it for one installation.
//
// A migration is a pair of files, NNNN_name.up.sql and NNNN_name.down.sql,
// numbered from 1 without gaps. Each is a text/template over [Params]; its
// statements end with a semicolon at the end of a line. STORAGE.md tells why
// the tables look as they do.
//
// ClickHouse has neither transactions over DDL nor locks, and several replicas
// of the server migrate at the same time. So every statement may be run again,
// at any moment, by anyone: it says IF [NOT] EXISTS (a test holds this), and a
// later migration replaces what an earlier one made instead of editing it.
//
// The package is pure: it reads embedded files and writes text. pkg/clickhouse
// runs the statements and keeps the record of what has been run.
package migrations

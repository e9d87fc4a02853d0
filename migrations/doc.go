// Package migrations holds the SQL that builds MetaFlow's database in
// ClickHouse, and renders it for one installation. STORAGE.md tells why the
// tables look as they do.
//
// Tables change in numbered steps. A step is a pair of files,
// NNNN_name.up.sql and NNNN_name.down.sql, numbered from 1 without gaps. A step
// that was released never changes.
//
// Views do not have steps. views/NAME.sql holds the current form of one view or
// a few, and every migration up replaces the views that have another form: the
// comment of a view says which one it has. When a step goes down, the views go
// back first. views/until_NNNN/NAME.sql is the form that a view had up to that
// version; a view without such a file has not changed since.
//
// Each file is a text/template over [Params]; its statements end with a
// semicolon at the end of a line.
//
// ClickHouse has neither transactions over DDL nor locks, and several replicas
// of the server migrate at the same time, while writers insert. So every
// statement may be run again, at any moment, by anyone (a test holds the rules
// for this). A materialized view is never dropped to be made again, because
// rows that arrive in between would be missing in what it fills: ALTER TABLE
// ... MODIFY QUERY exchanges its query between two inserts.
//
// The package is pure: it reads embedded files and writes text. pkg/clickhouse
// runs the statements and keeps the record of what has been run.
package migrations

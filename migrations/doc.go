// Package migrations contains the SQL of MetaFlow's ClickHouse database and renders it
// for one installation. STORAGE.md explains the design of the tables.
//
// Tables change in numbered steps. A step is a pair of files,
// NNNN_name.up.sql and NNNN_name.down.sql, numbered from 1 without gaps. A step
// that was released never changes.
//
// Views have no steps. views/NAME.sql contains the current form of one or a few views,
// and every migration up replaces the views that have another form: a view's comment
// identifies its form. A step down first restores the views' old forms.
// views/until_NNNN/NAME.sql is the form of a view up to that version; a view without such
// a file has not changed since.
//
// columns.txt has the comments on the views' columns.
//
// Each file is a text/template over [Params]; its statements end with a
// semicolon at the end of a line.
//
// ClickHouse has neither transactions over DDL nor locks, and several replicas of the
// server migrate at the same time, while writers insert. So every statement can be run
// again, at any time, by any replica (a test enforces the rules for this). A materialized
// view is never dropped and recreated, because rows inserted in between would be missing
// in its table: ALTER TABLE ... MODIFY QUERY replaces its query between two inserts.
//
// The package is pure: it reads embedded files and returns text. pkg/clickhouse runs the
// statements and records them.
package migrations

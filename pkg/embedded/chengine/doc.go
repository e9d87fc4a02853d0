// Package chengine runs a real ClickHouse server as a child process, so that storing and
// querying spans requires no installation.
//
// It uses the first of these: the shared library named by [Options] or
// METAFLOW_CHDB_LIBRARY; a clickhouse binary on the PATH; the shared library that `make
// engine` left in .cache/chdb. The library cannot be loaded into this process, because it
// takes over signals and a crash of either would end both. So the program executes itself
// again and the copy becomes the engine, which is why main and TestMain call
// [MaybeRunChild] first.
//
// The package does not know what is stored. An [Engine] owns its child and one goroutine
// that waits for it. Its methods are safe for concurrent use.
//
// Invariants: the child never outlives this process, however it ends (the kernel kills it
// where it can, and its standard input closes everywhere); signals from the terminal do
// not reach the child; the data directory survives the death of either process at any
// moment, and serves one engine at a time.
package chengine

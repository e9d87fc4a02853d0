// Package chengine runs a real ClickHouse server as a child process, so that
// nothing has to be installed to store and query spans.
//
// The server is, in this order: the shared library named by [Options] or by
// METAFLOW_CHDB_LIBRARY; a clickhouse binary on the PATH; the shared library
// that `make engine` left in .cache/chdb. A library cannot be loaded into this
// process, because it takes over signals and would die with us or we with it:
// the program executes itself again and the copy becomes the engine. That is
// why main and TestMain call [MaybeRunChild] before anything else.
//
// Nothing here knows what is stored. An [Engine] owns its child and one
// goroutine that waits for it; its methods may be called from any goroutine.
//
// Invariants: the child never outlives this process, however it ends (the
// kernel kills it where it can, and its standard input ends everywhere); a
// signal from the terminal does not reach the child; the data directory
// survives the death of either at any moment, and serves one engine at a time.
package chengine

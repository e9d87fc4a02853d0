// Package opshttp is the HTTP server of every MetaFlow program: liveness (/healthz),
// readiness (/ready, or /ready?check=NAME for one condition), metrics (/metrics),
// profiles when configured (/debug/pprof/), and handlers that the program adds with
// [Server.Handle].
//
// [Check]s define readiness. They run in parallel, at most once a second however often
// /ready is requested, and never concurrently with themselves.
package opshttp

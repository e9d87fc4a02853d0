// Package opshttp is the HTTP server of every MetaFlow program: whether it
// lives (/healthz), whether it can do its work (/ready; /ready?check=NAME asks for one condition), its metrics (/metrics),
// profiles when configured (/debug/pprof/), and what the program adds by
// [Server.Handle].
//
// It knows no other package of ours but pkg/tlsconfig: what ready means is told by [Check]s. They
// run in parallel, at most once a second however often they are asked for, and
// never twice at a time.
package opshttp

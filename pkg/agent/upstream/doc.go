// Package upstream is an agent's way to the servers: it sends trace requests, as
// the bytes they are, and opens the stream of control.
//
// It owns connections, names and addresses, TLS, the spread of requests over
// all replicas, and what an answer means. It keeps no request: [Client.Export] tries
// once, and what failed is the caller's to keep and send again. Two answers
// decide how. The class of the error (pkg/fault) says whether the same bytes may
// be accepted later; [Doubtful] says whether a server may have them already, and then
// they must go out with ExportOptions.Resend.
//
// Replicas: every address of every configured name is a replica, requests go to the
// reachable ones in turn, and names are looked up again at an interval and whenever
// a connection is lost. A name that can no longer be looked up keeps the addresses it had.
//
// Concurrency: a Client may be used by many goroutines. Nothing dials before the
// first call that needs a server; from then on gRPC's goroutines and one that
// looks names up live until Close.
package upstream

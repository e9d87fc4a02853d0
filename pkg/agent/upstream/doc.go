// Package upstream is an agent's client of the servers: it sends trace requests
// as raw bytes and opens the control stream.
//
// It owns connections, name resolution, TLS, load balancing over all replicas,
// and the interpretation of replies. It keeps no request: [Client.Export] tries
// once, and the caller keeps what failed and retries. Two properties of the
// error tell how. Its class (pkg/fault) tells whether the same bytes may be
// accepted later. [OutcomeUnknown] tells whether a server may have stored them
// already; the retry must then set ExportOptions.Resend.
//
// Replicas: every address of every configured name is a replica. Requests go to
// the reachable replicas in turn. Names are resolved again at an interval and
// whenever a connection is lost. A name that no longer resolves keeps its last
// addresses.
//
// Concurrency: a Client is safe for concurrent use. It does not dial before the
// first call that needs a server; from then on gRPC's goroutines and one that
// resolves names live until Close.
package upstream

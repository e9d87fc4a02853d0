// Package agent is what metaflow-agent does: it takes traces from the collectors
// of its node to a server, as the configuration of its agent group says.
//
// # The way of a request
//
// A listener (listener.go) receives a request over OTLP/HTTP or OTLP/gRPC and hands it
// to the forwarder (forward.go). That adds the sender's address to resources that
// say nothing of their own, and sends the bytes to a server. When no server can take them, it
// puts them into the spool on disk and acknowledges them all the same; the
// drainer (drain.go) sends them later, beside live traffic. When the spool is full, the sender is
// asked to come back. What servers refuse out of the spool is parked (parking.go).
//
// # Invariants
//
//   - A request is acknowledged only when a server acknowledged it, or when it is
//     in the spool and synced.
//   - Every request that may have reached a server before says so when it is sent
//     again (metaflow-resend), so that the spans of both are stored once.
//   - What was acknowledged is never dropped: it is stored, parked or in the spool.
//   - Every try of a request carries the time of its first receipt, by which servers judge it.
//   - Bytes are forwarded as they came, unless an address has to be added, the request is too large
//     for a server, or it goes to the spool and has spans that no server stores.
//
// # Configuration
//
// The agent holds one stream to a server open (control.go). What the server sends
// is applied at once (listener.go), kept on disk, and in force again after a restart
// even when no server can be reached.
package agent

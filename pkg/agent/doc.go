// Package agent implements metaflow-agent: it forwards traces from the
// collectors of its node, and flow data of the node's connections, to a server,
// as configured by its agent group.
//
// # The path of a request
//
// A listener (listener.go) receives a request over OTLP/HTTP or OTLP/gRPC and
// passes it to the forwarder (forward.go). The forwarder adds the sender's
// address to resources that have none and sends the bytes to a server. If no
// server accepts them, it appends them to the spool on disk and acknowledges
// them all the same; the drainer (drain.go) sends them later, alongside live
// traffic. If the spool is full, the forwarder asks the sender to retry.
// Requests from the spool that servers reject are parked (parking.go).
//
// # Invariants
//
//   - A request is acknowledged only after a server acknowledged it, or after it was synced to the
//     spool.
//   - Every request that may have reached a server before is marked when it is sent again
//     (metaflow-resend), so that its spans are stored once.
//   - An acknowledged request is never dropped: it is stored, parked or in the spool.
//   - Every attempt to send a request carries the time of its first receipt, by which servers judge
//     it.
//   - Bytes are forwarded unchanged, unless an address must be added, the request is too large for a
//     server, or it goes to the spool and has spans that no server stores.
//
// # Configuration
//
// The agent keeps one control stream to a server open (control.go). It applies
// the server's configuration at once (listener.go) and stores it on disk, so
// that it is in force after a restart even if no server can be reached.
package agent

// Package flow turns the kernel's TCP socket statistics into rows of flow data.
//
// The caller feeds a [Table], per network namespace, with dumps of the living
// sockets and with the kernel's destroy notifications. The Table returns one
// [Row] for each connection at its end, and one per report interval while it
// lives. The counters of a row are deltas: late, lost or reordered input never
// counts anything twice.
//
// The package does no I/O, reads no clock and starts no goroutine; the caller
// passes the time. A Table belongs to one goroutine at a time;
// pkg/agent/capture drives it.
//
// # What the kernel reports, and what it does not
//
// A dump shows every connection that lives, but none that began and ended
// between two dumps. Destroy notifications cover every connection that ended,
// short ones too. The kernel sends one when it frees the socket, which may be
// long after the connection ended: an application that does not close its
// descriptor keeps a dead socket, which no dump shows, for as long as it likes.
// A connection that dumps miss is therefore closed after two dumps, then kept
// in case a late destroy notification arrives.
//
// Dumps and notifications may be lost or overtake each other. The cookie
// identifies one socket among all of them, even when the same addresses and
// ports are reused at once.
//
// The final counters show how a connection ended ([Socket] has the details). An
// acknowledged FIN is an orderly end. Unanswered retransmissions or probes are
// a timeout. Any other end of an established connection is a reset; the kernel
// does not record which side sent it. A reset that cut nothing off is an orderly
// end, and what the client's own process aborted is not counted as a reset. A
// connection that was never established is a failed connect, which the peer
// refused if it answered. A socket that was closed with SO_LINGER 0, and one whose
// blocking connect failed, has lost the peer's port, its local address and its
// counters by the time of the notification; if a dump had shown it, the Table
// reports what the dump showed.
//
// # Trouble
//
// Trouble on a living connection is reported by the dump that shows it, in a row
// of its own: retransmissions, a receiver's window that held the sender back,
// bytes that the process left unread, and round trip times above the usual of
// the edge, which the Table learns ([edge]). A round trip time also contains
// what the peer's delayed acknowledgements add, up to 45 ms, and a smoothed one
// contains earlier times; neither counts as trouble.
package flow

// Package flow makes rows of flow data out of what the kernel says of TCP sockets.
//
// A [Table] is fed, per network namespace, with dumps of the living sockets and with the
// last words of those that were destroyed, and gives a [Row] for each connection at
// its end and for each living one per report interval. The counters of a row are deltas: whatever is late, lost or in
// another order, nothing is counted a second time.
//
// The package does no I/O, reads no clock and starts no goroutine: times are passed. A Table belongs
// to one goroutine at a time; pkg/agent/capture feeds it.
//
// # What the kernel tells, and what it does not
//
// A dump has every connection but not what ended between two of them; the last words (the kernel calls them
// destroy notifications) have everything that ended, short connections too. They come when the
// socket is freed, which may be long after the connection ended: an application that does not close its descriptor
// keeps a dead socket, in no dump, for as long as it likes. So a connection that dumps miss is
// given up only after two of them, and remembered then, for the case that
// its last words come.
//
// A dump and the last words may be lost or overtake each other. The cookie, which is of one socket
// alone, tells what belongs together, also when the same addresses and ports are used
// again at once.
//
// How a connection ended is read from its last numbers ([Socket] has the details): an acknowledged FIN is
// an orderly end; retransmissions or probes without an answer are a timeout; what else ends an
// established connection is a reset, of which the kernel does not say who sent it. What never was
// established is a failed connect. A socket that was closed with SO_LINGER 0, and one whose blocking
// connect failed, has lost the peer's port, its local address and its counters by the time of
// its last words; if a dump had shown it, that is what is reported.
package flow

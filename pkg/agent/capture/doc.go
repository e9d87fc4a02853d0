// Package capture watches a machine's TCP connections and produces rows of flow
// data.
//
// A [Capture] joins three packages: netns finds the network namespaces,
// sockdiag queries the kernel in each of them, and flow turns the answers into
// rows. The one goroutine of Run drives all three. Every tick it reads the
// destroy notifications of each namespace; at longer intervals it dumps the
// living sockets and looks for namespaces that came and went. So idle
// namespaces have no goroutine, nothing needs a lock, and the cost grows with
// the sockets, not with the packets.
//
// A second goroutine passes rows to the [Consumer], one batch at a time. A slow
// consumer does not stop capture. Rows wait first; then living connections are
// not reported, which loses nothing; only then are the rows of ended
// connections dropped and counted.
//
// A missing privilege does not stop capture: it goes on without what the
// privilege would show, and Exceptions reports what is missing.
package capture

// Package capture watches the TCP connections of a machine and hands over rows of flow data.
//
// A [Capture] joins three packages: netns finds the network namespaces, sockdiag asks the kernel in each of
// them, and flow makes rows of the answers. All three are driven by the one goroutine of Run: every tick it takes
// the last words of destroyed sockets out of each namespace's buffer, from time to time it dumps what lives
// and looks for namespaces that came and went. So nothing runs in idle namespaces, nothing is locked, and the cost
// is that of the sockets, not of the packets.
//
// A second goroutine hands rows to the [Consumer], one batch at a time. While the consumer takes its time the kernel is
// still listened to; rows wait, then living connections are not reported, which loses nothing, and only then rows
// of ended ones are dropped and counted.
//
// What the process lacks privileges for is left out, and said by Exceptions: capture goes on with the rest.
package capture

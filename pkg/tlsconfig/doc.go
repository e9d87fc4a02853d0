// Package tlsconfig configures TLS: [Client] for outgoing connections, [Server] for
// listeners, and the certificates behind them.
//
// Certificates expire and are replaced while programs run. When a connection is made, the
// files are checked again, at most every few seconds, and their content is used from then
// on. Existing connections stay open, except those of clients whose authority was removed
// from the file, which [Acceptor.Run] closes. Files that cannot be used, such as half of
// a pair during a replacement, leave the last good ones in effect and are logged once.
//
// The package starts no goroutines. All types are safe for concurrent use.
package tlsconfig

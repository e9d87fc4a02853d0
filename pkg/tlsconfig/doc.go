// Package tlsconfig is how adapters are told to encrypt: one struct for those
// that connect, [Client], one for those that listen, [Server], and the
// certificates behind them.
//
// Certificates expire and are replaced while programs run. The files are looked at again
// when a connection is made, at most every few seconds, and what they hold is used
// from then on; connections that exist stay as they are, but those of clients whose authority is gone from
// the file, which [Acceptor.Run] closes. Files that cannot be
// used, such as half a pair in the middle of a replacement, leave the last good ones
// in force and are logged once.
//
// The package starts no goroutines. Everything in it may be used by many at a time.
package tlsconfig

package process

import (
	"math/rand/v2"
	"net"
	"strconv"
	"time"
)

// Listening returns a check for Await that reports whether a program listens at
// addr.
func Listening(addr string) func() (bool, error) {
	return func() (bool, error) {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		return true, conn.Close()
	}
}

// FreePort returns a port of a host's address that was free a moment ago. It is
// outside the range from which outgoing connections take their ports.
func FreePort(host string) (string, error) {
	var err error
	for range 100 {
		port := strconv.Itoa(15000 + rand.IntN(15000)) //nolint:gosec // not a secret
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(host, port)); err == nil {
			return port, l.Close()
		}
	}
	return "", err
}

// Package ports finds addresses for programs that listen later than the test
// chooses their port. Where a program can say which port it has chosen, port 0 is
// better.
package ports

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Free returns a loopback port that nothing listens on. It lies outside the
// range from which outgoing connections take theirs, so only another test can
// take it meanwhile.
func Free(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 10_000 + rand.IntN(22_000) //nolint:gosec // a port is no secret
		l, err := net.Listen("tcp", Address(port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free between 10000 and 32000")
	return 0
}

// FreeAddress returns the address of such a port.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return Address(Free(t))
}

// Address returns a loopback address.
func Address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

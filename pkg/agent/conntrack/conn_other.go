//go:build !linux

package conntrack

import "github.com/metaflowys/metaflow-server/pkg/agent/nat"

// Buffer is empty on this system.
type Buffer struct{}

// NewBuffer returns an empty Buffer.
func NewBuffer() *Buffer { return &Buffer{} }

// Conn is the type that Open returns on Linux; here Open never returns one.
type Conn struct{}

// Open returns ErrAbsent.
func Open(int) (*Conn, error) { return nil, ErrAbsent }

// Close does nothing.
func (*Conn) Close() {}

// FD returns -1.
func (*Conn) FD() int { return -1 }

// Reports returns false.
func (*Conn) Reports() bool { return false }

// Dump returns ErrAbsent.
func (*Conn) Dump(*Buffer, func(*nat.Connection)) error { return ErrAbsent }

// Read returns ErrAbsent.
func (*Conn) Read(*Buffer, int, func(*nat.Connection)) (int, bool, error) {
	return 0, false, ErrAbsent
}

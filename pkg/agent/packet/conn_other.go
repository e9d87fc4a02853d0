//go:build !linux

package packet

// Buffer is empty on this system.
type Buffer struct{}

// NewBuffer returns an empty Buffer.
func NewBuffer() *Buffer { return &Buffer{} }

// Conn is the type that Open returns on Linux; here Open never returns one.
type Conn struct{}

// Open returns ErrUnsupported.
func Open(int) (*Conn, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Conn) Close() {}

// FD returns -1.
func (*Conn) FD() int { return -1 }

// Dropped returns 0.
func (*Conn) Dropped() uint32 { return 0 }

// Read returns ErrUnsupported.
func (*Conn) Read(*Buffer, int, func(*Packet)) (int, error) { return 0, ErrUnsupported }

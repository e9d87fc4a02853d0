//go:build !linux

package sockdiag

import "github.com/metaflowys/metaflow-server/pkg/agent/flow"

// States is a set of flow.State.
type States uint32

// Sets of states; they have no meaning on this system.
const (
	Listening States = iota
	Connections
)

// Buffer is empty on this system.
type Buffer struct{}

// NewBuffer returns an empty Buffer.
func NewBuffer() *Buffer { return &Buffer{} }

// Conn is the type that Open returns on Linux; here Open never returns one.
type Conn struct{}

// Open returns ErrUnsupported.
func Open() (*Conn, error) { return nil, ErrUnsupported }

// Subscribe returns ErrUnsupported.
func (*Conn) Subscribe(int) (int, error) { return 0, ErrUnsupported }

// Close does nothing.
func (*Conn) Close() {}

// Dump returns ErrUnsupported.
func (*Conn) Dump(*Buffer, States, func(*flow.Socket)) error { return ErrUnsupported }

// ReadDestroyed returns ErrUnsupported.
func (*Conn) ReadDestroyed(*Buffer, int, func(*flow.Socket)) (int, bool, error) {
	return 0, false, ErrUnsupported
}

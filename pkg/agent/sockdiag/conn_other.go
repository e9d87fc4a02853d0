//go:build !linux

package sockdiag

import "github.com/metaflowys/metaflow-server/pkg/agent/flow"

// States is a set of flow.State.
type States uint32

// Sets of states, which mean nothing here.
const (
	Listening States = iota
	Connections
)

// Buffer is memory for messages.
type Buffer struct{}

// NewBuffer returns a buffer.
func NewBuffer() *Buffer { return &Buffer{} }

// Conn is what Open does not return on this system.
type Conn struct{}

// Open returns ErrUnsupported.
func Open() (*Conn, error) { return nil, ErrUnsupported }

// Subscribe returns ErrUnsupported.
func (*Conn) Subscribe(int) (int, error) { return 0, ErrUnsupported }

// Close does nothing.
func (*Conn) Close() {}

// Dump returns ErrUnsupported.
func (*Conn) Dump(*Buffer, States, func(*flow.Socket)) error { return ErrUnsupported }

// Words returns ErrUnsupported.
func (*Conn) Words(*Buffer, int, func(*flow.Socket)) (int, bool, error) {
	return 0, false, ErrUnsupported
}

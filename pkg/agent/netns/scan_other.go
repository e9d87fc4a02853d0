//go:build !linux

package netns

// Scanner lists nothing on this system.
type Scanner struct{}

// NewScanner returns a Scanner.
func NewScanner(Options) *Scanner { return &Scanner{} }

// Scan returns ErrUnsupported.
func (*Scanner) Scan() (found []Namespace, missing []*MissingError, err error) {
	return nil, nil, ErrUnsupported
}

// Do runs f if ns is the process's own namespace, and returns ErrUnsupported
// otherwise.
func Do(ns Namespace, f func() error) error {
	if !ns.Own {
		return ErrUnsupported
	}
	return f()
}

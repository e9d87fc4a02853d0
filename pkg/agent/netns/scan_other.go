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

// Do runs f inside the process's own namespace, which is the only one.
func Do(ns Namespace, f func() error) error {
	if !ns.Own {
		return ErrUnsupported
	}
	return f()
}

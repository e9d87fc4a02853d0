// Package fault classifies errors by what the holder of the data should do next. The
// class is set where the cause is known and read only at boundaries: the response to a
// client, a retry loop, the decision to divert.
package fault

import "errors"

// Class is what the party holding the data should do.
type Class uint8

const (
	// Retryable is the zero value, because storing twice is safe here and losing is not.
	Retryable Class = iota
	// Rejected means that the same bytes will be refused again: divert them.
	Rejected
	// Overload means to send again, later.
	Overload
	// Fenced means that another party owns the work now: stop, change nothing.
	Fenced
)

func (c Class) String() string {
	switch c {
	case Retryable:
		return "retryable"
	case Rejected:
		return "rejected"
	case Overload:
		return "overload"
	case Fenced:
		return "fenced"
	default:
		return "unknown"
	}
}

type classified struct {
	error
	class Class
}

func (c *classified) Unwrap() error { return c.error }

// As sets the class of err and keeps its text. As(c, nil) is nil.
func As(c Class, err error) error {
	if err == nil {
		return nil
	}
	return &classified{error: err, class: c}
}

// ClassOf returns the outermost class set on err, or Retryable.
func ClassOf(err error) Class {
	var c *classified
	if errors.As(err, &c) {
		return c.class
	}
	return Retryable
}

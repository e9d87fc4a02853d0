// Package fault classifies errors by what the holder of the data should do
// next. The class is given where the cause is still known and read only at
// boundaries: the reply to a client, a retry loop, the decision to divert.
package fault

import "errors"

// Class says what the party holding the data should do.
type Class uint8

const (
	// Retryable is the zero value, because sending twice is safe here and
	// losing is not.
	Retryable Class = iota
	// Rejected means that these very bytes will be refused again: divert them.
	Rejected
	// Overload means send again, later.
	Overload
	// Fenced means that somebody else owns the work now: stop, change nothing.
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

// As gives err a class and keeps its text. As(c, nil) is nil.
func As(c Class, err error) error {
	if err == nil {
		return nil
	}
	return &classified{error: err, class: c}
}

// ClassOf returns the outermost class given to err, or Retryable.
func ClassOf(err error) Class {
	var c *classified
	if errors.As(err, &c) {
		return c.class
	}
	return Retryable
}

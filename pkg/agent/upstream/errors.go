package upstream

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc/callerror"
	"github.com/metaflowys/metaflow-server/schema"
)

var errNotReady = errors.New("no server connected")

// failure is an error of Export with the details of its status.
type failure struct {
	error
	outcomeUnknown bool
	tooLarge       bool
	after          time.Duration
	asked          bool // the server asked to wait for after
}

func (f *failure) Unwrap() error { return f.error }

// OutcomeUnknown reports whether a server may have stored the request that err
// is about. It is false only if surely none has: no connection took the
// request, or the server refused it.
func OutcomeUnknown(err error) bool {
	var f *failure
	if errors.As(err, &f) {
		return f.outcomeUnknown
	}
	return err != nil
}

// TooLarge reports whether the request exceeds the size that a server accepts;
// parts of it may be accepted. A proxy in between may return the same error for
// a request of any size.
func TooLarge(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.tooLarge
}

// RetryAfter returns how long the server asked the client to wait before it
// retries; ok is false if it did not ask.
func RetryAfter(err error) (after time.Duration, ok bool) {
	var f *failure
	if errors.As(err, &f) {
		return f.after, f.asked
	}
	return 0, false
}

// Explained returns the error of a call in words for an operator.
func Explained(err error) error { return errors.New(callerror.Text(err)) }

// exportError converts the error of a call. handed tells whether the request
// was given to a connection.
func exportError(err error, handed bool, size int) error {
	if errors.Is(err, errNotReady) {
		return &failure{error: fmt.Errorf("export %d bytes: %w", size, err)}
	}
	st := status.Convert(err)
	f := &failure{outcomeUnknown: handed, error: fmt.Errorf("export %d bytes: %s", size, callerror.Text(err))}
	atLimit := false
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.RetryInfo:
			f.after, f.asked = max(0, d.GetRetryDelay().AsDuration()), true
		case *errdetails.ErrorInfo:
			atLimit = d.GetDomain() == schema.ErrorDomain && d.GetReason() == schema.ReasonAtLimit
		}
	}
	class := classOf(st.Code(), f.asked)
	f.tooLarge = st.Code() == codes.ResourceExhausted && !f.asked
	if class == fault.Rejected || atLimit || f.tooLarge || st.Code() == codes.Unimplemented {
		f.outcomeUnknown = false
	}
	return fault.As(class, f)
}

// classOf follows OTLP, except that it retries where OTLP has a client drop the
// data, unless the reply is about the data itself. A reply such as
// PERMISSION_DENIED, or UNIMPLEMENTED from a server without the gateway role,
// ends once an operator fixes the cause. So does RESOURCE_EXHAUSTED for a
// request above a server's limit, see TooLarge.
func classOf(code codes.Code, askedToWait bool) fault.Class {
	switch {
	case code == codes.InvalidArgument:
		return fault.Rejected
	case askedToWait:
		return fault.Overload
	default:
		return fault.Retryable
	}
}

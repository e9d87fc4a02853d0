package upstream

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/schema"
)

var errNotReady = errors.New("no server is connected")

// failure is an error of Export with what its status said.
type failure struct {
	error
	doubtful bool
	after    time.Duration
	asked    bool // to wait for after
}

func (f *failure) Unwrap() error { return f.error }

// Doubtful tells whether a server may have stored the request that err is
// about. It is false only when surely none has: no connection took it, or the
// server refused it.
func Doubtful(err error) bool {
	var f *failure
	if errors.As(err, &f) {
		return f.doubtful
	}
	return err != nil
}

// RetryAfter returns how long the server asked us to wait before we send again;
// ok is false when it did not ask.
func RetryAfter(err error) (after time.Duration, ok bool) {
	var f *failure
	if errors.As(err, &f) {
		return f.after, f.asked
	}
	return 0, false
}

// exportError says what err, of a call that was handed to a connection or
// not, means for the request.
func exportError(err error, handed bool, size int) error {
	if errors.Is(err, errNotReady) {
		return &failure{error: fmt.Errorf("export %d bytes: %w", size, err)}
	}
	st := status.Convert(err)
	f := &failure{doubtful: handed, error: fmt.Errorf("export %d bytes: %s: %s", size, st.Code(), st.Message())}
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
	if class == fault.Rejected || atLimit || st.Code() == codes.Unimplemented {
		f.doubtful = false
	}
	return fault.As(class, f)
}

// classOf follows OTLP, but keeps what OTLP would have a client drop unless the
// answer is about the request itself: an answer such as PERMISSION_DENIED, or UNIMPLEMENTED
// of a server without the role gateway, ends when an operator has mended something.
func classOf(code codes.Code, askedToWait bool) fault.Class {
	switch code { //nolint:exhaustive // the others are below
	case codes.InvalidArgument:
		return fault.Rejected
	case codes.ResourceExhausted:
		if !askedToWait {
			return fault.Rejected // too large
		}
		return fault.Overload
	}
	if askedToWait {
		return fault.Overload
	}
	return fault.Retryable
}

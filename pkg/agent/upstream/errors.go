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
	tooLarge bool
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

// TooLarge tells whether err says that the request exceeds what a server takes at once: parts of it
// may be accepted. A limit of something in between may say the same of a request of any size.
func TooLarge(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.tooLarge
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
	f.tooLarge = st.Code() == codes.ResourceExhausted && !f.asked
	if class == fault.Rejected || atLimit || f.tooLarge || st.Code() == codes.Unimplemented {
		f.doubtful = false
	}
	return fault.As(class, f)
}

// classOf follows OTLP, but keeps what OTLP would have a client drop unless the
// answer is about the data itself: an answer such as PERMISSION_DENIED, or UNIMPLEMENTED
// of a server without the role gateway, ends when an operator has mended something. So does RESOURCE_EXHAUSTED
// for a request above a server's limit, see TooLarge.
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

package kafka

import (
	"context"
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// ErrOffsetOutOfRange says that the log of the partition does not have the
// offset asked for: retention has deleted it, or it is beyond the end.
var ErrOffsetOutOfRange = errors.New("offset is not in the log")

// ErrStopped says that the Producer does not run any more.
var ErrStopped = errors.New("producer is stopped")

// CorruptError is a record batch in the log that cannot be read, however often
// it is fetched. The records before it have been returned by an earlier Fetch.
// Its class is fault.Rejected.
type CorruptError struct {
	Offset int64 // of the first record that cannot be read
	Next   int64 // where to go on, not after the first record that may be readable
	Cause  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("read record batch at offset %d: %v", e.Offset, e.Cause)
}

func (e *CorruptError) Unwrap() error { return e.Cause }

// codeError makes an error of a code in a broker's answer; nil for none.
func codeError(code int16, message string) error {
	if code == 0 {
		return nil
	}
	err := kafkago.Error(code)
	if message == "" {
		return err
	}
	return fmt.Errorf("%w (%s)", err, message)
}

// rejectedCode reports whether the same records would be refused again.
func rejectedCode(code kafkago.Error) bool {
	switch code {
	case kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge, kafkago.InvalidTimestamp, kafkago.InvalidRecord:
		return true
	default:
		return false
	}
}

// tooLarge reports whether a smaller batch may be accepted.
func tooLarge(err error) bool {
	return errors.Is(err, kafkago.MessageSizeTooLarge) || errors.Is(err, kafkago.RecordListTooLarge)
}

// hopeless reports whether a produce error will not go away within seconds, so that
// the caller should hear of it at once.
func hopeless(err error) bool {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return false // the network's
	}
	return !code.Temporary() && code != kafkago.Unknown && code != kafkago.BrokerNotAvailable
}

// classifyProduce gives a produce error its class.
func classifyProduce(err error) error {
	var code kafkago.Error
	if errors.As(err, &code) && rejectedCode(code) {
		return fault.As(fault.Rejected, err)
	}
	return err
}

// classifyFetch gives an error of reading the log its class.
func classifyFetch(err error) error {
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		return fault.As(fault.Rejected, err)
	}
	return err
}

// classifyGroup gives the answer to a commit its class.
func classifyGroup(err error) error {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return err
	}
	switch code {
	// REBALANCE_IN_PROGRESS refuses a commit once the members have joined the next
	// generation and wait for their partitions, so ours is over, too.
	case kafkago.IllegalGeneration, kafkago.UnknownMemberId, kafkago.RebalanceInProgress, kafkago.FencedInstanceID:
		return fault.As(fault.Fenced, err)
	default:
		return err
	}
}

// cause is the short word for err in a metric's label.
func cause(err error) string {
	var code kafkago.Error
	switch {
	case errors.As(err, &code):
		return code.Title()
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	default:
		return "connection"
	}
}

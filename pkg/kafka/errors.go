package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// ErrOffsetOutOfRange means that the log of the partition does not contain the offset:
// retention has deleted it, or it is beyond the end.
var ErrOffsetOutOfRange = errors.New("offset is not in the log")

// ErrTopicChanged means that the topic was deleted or recreated: the TopicID no longer
// names it, and offsets have lost their meaning.
var ErrTopicChanged = errors.New("the topic is not the one that was read: it was deleted or recreated")

// ErrTruncated means that the log has lost records that were read from it or committed as
// read. After a power loss or the election of a lagging replica, the log ends earlier or
// continues with other records.
var ErrTruncated = errors.New("the log has lost records that were read before")

// ErrCommitUnknown means that a commit got no definite response. It may have taken effect
// and still may; see Claim.CommitPosition.
var ErrCommitUnknown = errors.New("it is not known whether the commit was carried out")

// ErrStopped means that the Producer no longer runs.
var ErrStopped = errors.New("producer is stopped")

// ErrTooLarge means that a record is larger than the topic accepts. TooLargeError wraps
// it.
var ErrTooLarge = errors.New("record is larger than the topic accepts")

// TooLargeError lists the records of a batch that are larger than the topic accepts
// (max.message.bytes); the topic stored all the others. A smaller part of such a record
// may be accepted. It has class fault.Retryable, because the topic's configuration may
// change.
type TooLargeError struct {
	Records []int // indexes into the batch, ascending
	Cause   error // the broker's error
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%d records are larger than the topic accepts (its max.message.bytes): %v", len(e.Records), e.Cause)
}

// Unwrap returns ErrTooLarge and the broker's error.
func (e *TooLargeError) Unwrap() []error { return []error{ErrTooLarge, e.Cause} }

// BehindError means that Kafka takes records more slowly than they come, so that more of them would wait
// for a large part of Config.ProduceTimeout. It has class fault.Overload.
type BehindError struct {
	Reason string
	Cause  error // why records wait, as far as known; may be nil
}

func (e *BehindError) Error() string {
	text := "kafka is behind: " + e.Reason
	if e.Cause != nil {
		text += ", after: " + e.Cause.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *BehindError) Unwrap() error { return e.Cause }

// NothingStored reports that the same records may be sent again as if for the first time.
func (*BehindError) NothingStored() bool { return true }

// CorruptError is a record batch in the log that cannot be read, however often it is
// fetched. An earlier Fetch has returned the records before it. It has class
// fault.Rejected.
type CorruptError struct {
	Offset int64 // of the first record that cannot be read
	Next   int64 // offset to continue at, not after the first record that may be readable
	Cause  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("read record batch at offset %d: %v", e.Offset, e.Cause)
}

func (e *CorruptError) Unwrap() error { return e.Cause }

// codeError returns the error of a code in a broker's response, or nil for 0.
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

// tooLarge reports whether a smaller batch may be accepted.
func tooLarge(err error) bool {
	return errors.Is(err, kafkago.MessageSizeTooLarge) || errors.Is(err, kafkago.RecordListTooLarge)
}

// permanent reports whether a produce error lasts until an operator acts, so that the
// caller should learn of it at once. The records may still be good: size limits,
// policies, clocks, permissions and configuration belong to the topic.
func permanent(err error) bool {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return false // from the network
	}
	return !code.Temporary() && code != kafkago.Unknown && code != kafkago.BrokerNotAvailable
}

// Kafka error codes that the library does not name.
const (
	unknownTopicID      kafkago.Error = 100
	inconsistentTopicID kafkago.Error = 103
	sessionTopicID      kafkago.Error = 106
)

// leaderMoved reports whether the cached leader or topic id is wrong, so that another
// lookup may help.
func leaderMoved(err error) bool {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return false
	}
	switch code {
	case kafkago.NotLeaderForPartition, kafkago.FencedLeaderEpoch, kafkago.UnknownLeaderEpoch, kafkago.LeaderNotAvailable,
		kafkago.ReplicaNotAvailable, kafkago.KafkaStorageError, kafkago.UnknownTopicOrPartition:
		return true
	default:
		return topicUnknown(err)
	}
}

// topicUnknown reports whether the broker has no topic with the requested id or name.
func topicUnknown(err error) bool {
	return errors.Is(err, kafkago.UnknownTopicOrPartition) || errors.Is(err, unknownTopicID) ||
		errors.Is(err, inconsistentTopicID) || errors.Is(err, sessionTopicID)
}

// ofTheLog reports whether err describes the requested log, which means that the right
// broker answered.
func ofTheLog(err error) bool {
	var corrupt *CorruptError
	return errors.As(err, &corrupt) || errors.Is(err, ErrOffsetOutOfRange) || errors.Is(err, ErrTruncated)
}

// classifyFetch sets the class of an error from reading the log.
func classifyFetch(err error) error {
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		return fault.As(fault.Rejected, err)
	}
	return err
}

// classifyGroup sets the class of an error from a commit.
func classifyGroup(err error) error {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return err
	}
	switch code {
	// The coordinator refuses a commit with REBALANCE_IN_PROGRESS once the members have
	// joined the next generation and wait for their partitions. Then this generation is
	// over, too.
	case kafkago.IllegalGeneration, kafkago.UnknownMemberId, kafkago.RebalanceInProgress, kafkago.FencedInstanceID:
		return fault.As(fault.Fenced, err)
	default:
		return err
	}
}

// timedOut reports whether no response arrived in time.
func timedOut(err error) bool {
	var code kafkago.Error
	if errors.As(err, &code) {
		return false // a response
	}
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout())
}

// cause returns the metric label for err.
func cause(err error) string {
	var code kafkago.Error
	switch {
	case errors.As(err, &code):
		return code.Title()
	case errors.Is(err, errNoLeader), errors.Is(err, errNoPartition):
		return "no leader"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	default:
		return "connection"
	}
}

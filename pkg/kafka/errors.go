package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// ErrOffsetOutOfRange says that the log of the partition does not have the
// offset asked for: retention has deleted it, or it is beyond the end.
var ErrOffsetOutOfRange = errors.New("offset is not in the log")

// ErrTopicChanged says that the topic was deleted, or deleted and created anew: the TopicID
// does not name it any more, and an offset means nothing.
var ErrTopicChanged = errors.New("the topic is not the one that was read: it was deleted or created anew")

// ErrTruncated says that the log has lost records that were read from it, or that the group
// has committed as read: after a power cut, or the election of a replica that was behind, it
// ends earlier or goes on with other records.
var ErrTruncated = errors.New("the log has lost records that were read before")

// ErrCommitUnknown says that no definite answer to a commit came. It may have been carried
// out, and may still be; see Claim.CommitPosition.
var ErrCommitUnknown = errors.New("it is not known whether the commit was carried out")

// ErrStopped says that the Producer does not run any more.
var ErrStopped = errors.New("producer is stopped")

// ErrTooLarge says that the topic takes no record as large as one of a batch. It
// is wrapped by a TooLargeError.
var ErrTooLarge = errors.New("record is larger than the topic takes")

// TooLargeError is the answer to a batch of which the topic stored every record but
// those that are larger than it takes (max.message.bytes). A smaller part of such a record may
// be accepted. It is of class fault.Retryable: the topic's configuration may change.
type TooLargeError struct {
	Records []int // indexes into the batch, ascending
	Cause   error // the broker's answer
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%d records are larger than the topic takes (its max.message.bytes): %v", len(e.Records), e.Cause)
}

// Unwrap makes a TooLargeError an ErrTooLarge, and the broker's error.
func (e *TooLargeError) Unwrap() []error { return []error{ErrTooLarge, e.Cause} }

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

// tooLarge reports whether a smaller batch may be accepted.
func tooLarge(err error) bool {
	return errors.Is(err, kafkago.MessageSizeTooLarge) || errors.Is(err, kafkago.RecordListTooLarge)
}

// hopeless reports whether a produce error lasts until an operator acts, so that
// the caller should hear of it at once. It says nothing about the records: size, policy,
// clock, permission and configuration are the topic's.
func hopeless(err error) bool {
	var code kafkago.Error
	if !errors.As(err, &code) {
		return false // the network's
	}
	return !code.Temporary() && code != kafkago.Unknown && code != kafkago.BrokerNotAvailable
}

// Kafka's codes that the library has no names for.
const (
	unknownTopicID      kafkago.Error = 100
	inconsistentTopicID kafkago.Error = 103
	sessionTopicID      kafkago.Error = 106
)

// leaderMoved reports whether what is believed of a partition's leader or of the topic's id
// is wrong, so that looking it up again may help.
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

// topicUnknown reports whether a broker has no topic of the id or the name asked for.
func topicUnknown(err error) bool {
	return errors.Is(err, kafkago.UnknownTopicOrPartition) || errors.Is(err, unknownTopicID) ||
		errors.Is(err, inconsistentTopicID) || errors.Is(err, sessionTopicID)
}

// ofTheLog reports whether err says something of the log that was asked for, so that the
// right broker was asked.
func ofTheLog(err error) bool {
	var corrupt *CorruptError
	return errors.As(err, &corrupt) || errors.Is(err, ErrOffsetOutOfRange) || errors.Is(err, ErrTruncated)
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

// timedOut reports whether there was no answer in time.
func timedOut(err error) bool {
	var code kafkago.Error
	if errors.As(err, &code) {
		return false // an answer
	}
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout())
}

// cause is the short word for err in a metric's label.
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

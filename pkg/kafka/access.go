package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Access is what a program does with a topic.
type Access struct {
	Topic       string
	Read, Write bool
	Group       string // the consumer group that reads the topic, if any
}

// operations are the rights that a broker reports for a topic or a group, a bit for each
// of Kafka's operations.
type operations int32

const (
	operationRead  = 3
	operationWrite = 4
	// unknownOperations is what a broker reports that does not tell.
	unknownOperations operations = -1 << 31
)

func (o operations) allow(operation int) bool {
	return o == unknownOperations || o&(1<<operation) != 0
}

// ErrNoTopic means that Kafka shows no such topic to this program's user.
var ErrNoTopic = errors.New("does not exist")

// CheckAccess returns nil if the topics exist and this program's user may do with them
// what it needs to, or else everything that is missing. It changes nothing in Kafka.
func (c *Client) CheckAccess(ctx context.Context, needs ...Access) error {
	var errs []error
	for _, need := range needs {
		errs = append(errs, c.checkAccess(ctx, need))
	}
	return errors.Join(errs...)
}

func (c *Client) checkAccess(ctx context.Context, need Access) error {
	state, err := c.describe(ctx, need.Topic)
	switch {
	case errors.Is(err, kafkago.UnknownTopicOrPartition):
		return fmt.Errorf("topic %s %w, or %s has no right to describe it", need.Topic, ErrNoTopic, c.user())
	case errors.Is(err, kafkago.TopicAuthorizationFailed):
		return fmt.Errorf("topic %s: %s may not describe it; give it the rights %s", need.Topic, c.user(), need.rights())
	case err != nil:
		return err
	}
	var missing []string
	if need.Read && !state.allowed.allow(operationRead) {
		missing = append(missing, "Read")
	}
	if need.Write && !state.allowed.allow(operationWrite) {
		missing = append(missing, "Write")
	}
	if len(missing) > 0 {
		return fmt.Errorf("topic %s: %s lacks the right %s", need.Topic, c.user(), strings.Join(missing, " and "))
	}
	if need.Group == "" {
		return nil
	}
	return c.checkGroup(ctx, need.Group)
}

func (a Access) rights() string {
	rights := []string{"Describe"}
	if a.Read {
		rights = append(rights, "Read")
	}
	if a.Write {
		rights = append(rights, "Write")
	}
	return strings.Join(rights, ", ")
}

// user names this program as Kafka knows it.
func (c *Client) user() string {
	if c.sasl != nil {
		return fmt.Sprintf("the user %q (kafka.sasl.username)", c.cfg.SASL.Username)
	}
	return "this server"
}

// checkGroup reports whether the user may not be a member of the group. Anything else
// that goes wrong, such as a coordinator that moves, is not about rights.
func (c *Client) checkGroup(ctx context.Context, group string) error {
	allowed := unknownOperations
	var code int16
	request := &rawCall{
		key: protocol.DescribeGroups, versions: []int16{describeGroupVersion}, flexibleFrom: describeGroupVersion + 1,
		encode: func(b []byte, _ int16) []byte {
			b = appendString(appendInt32(b, 1), group)
			return append(b, yes) // with the authorized operations
		},
		decode: func(r *answerReader, _ int16) { code, allowed = readGroup(r) },
	}
	if err := c.do(ctx, request, &groupCall{request, group}); err != nil {
		if errors.Is(err, kafkago.GroupAuthorizationFailed) {
			return c.groupRefused(group)
		}
		return nil // not about rights
	}
	if errors.Is(codeError(code, ""), kafkago.GroupAuthorizationFailed) || !allowed.allow(operationRead) {
		return c.groupRefused(group)
	}
	return nil
}

func (c *Client) groupRefused(group string) error {
	return fmt.Errorf("consumer group %s: %s lacks the right Read", group, c.user())
}

// describeGroupVersion is the first version with authorized operations.
const describeGroupVersion = 3

// readGroup reads a response about one group.
func readGroup(r *answerReader) (code int16, allowed operations) {
	allowed = unknownOperations
	r.int32() // throttled
	for range r.length(false) {
		code = r.int16()
		for range 4 { // group, state, type of protocol, protocol
			r.text(false)
		}
		for range r.length(false) {
			for range 3 { // member, client, host
				r.text(false)
			}
			r.bytes() // metadata
			r.bytes() // assignment
		}
		allowed = operations(r.int32())
	}
	return code, allowed
}

package kafka

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/segmentio/kafka-go/protocol"
)

// heartbeatRequest is version 0 of Kafka's heartbeat, which every broker supports. The
// library's own message decodes newer responses in the wrong field order and never sees
// an error, so its member would not notice a rebalance.
type heartbeatRequest struct {
	ctx        context.Context //nolint:containedctx // of the one exchange that this value is
	group      string
	generation int32
	member     string
}

type heartbeatResponse struct{ code int16 }

// ApiKey returns the request's API key.
func (*heartbeatRequest) ApiKey() protocol.ApiKey { return protocol.Heartbeat } //nolint:staticcheck // the library's interface names it so

// ApiKey returns the response's API key.
func (*heartbeatResponse) ApiKey() protocol.ApiKey { return protocol.Heartbeat } //nolint:staticcheck // the library's interface names it so

// Group routes the request to the coordinator.
func (r *heartbeatRequest) Group() string { return r.group }

// Required makes the library always use RawExchange.
func (*heartbeatRequest) Required(map[protocol.ApiKey]int16) bool { return true }

// RawExchange implements protocol.RawExchanger.
func (r *heartbeatRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	b := appendHeader(nil, protocol.Heartbeat, 0)
	b = appendString(b, r.group)
	b = binary.BigEndian.AppendUint32(b, uint32(r.generation))
	b = appendString(b, r.member)
	answer, err := exchange(r.ctx, rw, b, nil)
	if err != nil {
		return nil, err
	}
	body := answerReader{b: answer[correlationSize:]}
	res := &heartbeatResponse{code: body.int16()}
	return res, body.err()
}

// heartbeatTries is how many consecutive heartbeats may go unanswered before the lease
// ends. A dead connection costs one.
const heartbeatTries = 3

// heartbeat keeps the session alive and returns an error if the generation is over.
func (g *Group) heartbeat(ctx context.Context, gen generation) error {
	timeout := min(g.opts.SessionTimeout, g.opts.RebalanceTimeout) / heartbeatTries
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := g.client.roundTrip(ctx, timeout, &heartbeatRequest{
		ctx: ctx, group: g.id, generation: int32(gen.id), member: gen.member,
	})
	if err != nil {
		return err
	}
	return codeError(answer.(*heartbeatResponse).code, "")
}

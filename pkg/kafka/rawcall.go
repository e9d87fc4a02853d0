package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// rawCall is a request that is encoded and decoded here, because the library does not know
// the versions of it that carry topic ids and leader epochs.
type rawCall struct {
	ctx    context.Context //nolint:containedctx // of the one exchange that this value is
	client *Client
	key    protocol.ApiKey
	// versions are those that encode and decode know, the newest first.
	versions     []int16
	flexibleFrom int16
	// encode appends the body, and decode reads it. decode may run after the caller has gone.
	encode func(b []byte, version int16) []byte
	decode func(r *answerReader, version int16)

	state atomic.Int32 // one of waiting, sent, abandoned
}

const (
	waiting   = iota
	sent      // the first byte of it may have left
	abandoned // the caller has gone before that, so it must not leave any more
)

// callAnswer says only that there was an answer.
type callAnswer struct{ key protocol.ApiKey }

// clusterCall goes to any broker.
type clusterCall struct{ *rawCall }

// brokerCall goes to one broker.
type brokerCall struct {
	*rawCall
	broker int32
}

// groupCall goes to the coordinator of a group.
type groupCall struct {
	*rawCall
	group string
}

// ApiKey says which of Kafka's requests this is.
func (c *rawCall) ApiKey() protocol.ApiKey { return c.key } //nolint:staticcheck // the library's interface names it so

// ApiKey says which of Kafka's answers this is.
func (a *callAnswer) ApiKey() protocol.ApiKey { return a.key } //nolint:staticcheck // the library's interface names it so

// Broker routes the request.
func (c *brokerCall) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: c.broker}, nil
}

// Group routes the request to the coordinator.
func (c *groupCall) Group() string { return c.group }

// Required says that RawExchange is to be used, always.
func (c *rawCall) Required(map[protocol.ApiKey]int16) bool { return true }

// RawExchange implements protocol.RawExchanger.
func (c *rawCall) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	version, err := c.client.pickVersion(c.ctx, rw, c.key, c.versions)
	if err != nil {
		return nil, err
	}
	flexible := version >= c.flexibleFrom
	b := make([]byte, 0, 256)
	if flexible {
		b = appendFlexibleHeader(b, c.key, uint16(version))
	} else {
		b = appendHeader(b, c.key, uint16(version))
	}
	b = c.encode(b, version)
	if !c.state.CompareAndSwap(waiting, sent) {
		return nil, context.Canceled
	}
	answer, err := exchange(c.ctx, rw, b, nil)
	if err != nil {
		return nil, err
	}
	r := &answerReader{b: answer[correlationSize:]}
	r.tags(flexible)
	c.decode(r, version)
	if err := r.err(); err != nil {
		return nil, err
	}
	return &callAnswer{key: c.key}, nil
}

// notSent is called once, after an error. When it returns true, the request has not
// reached a broker and never will; else nobody knows.
func (c *rawCall) notSent() bool { return c.state.CompareAndSwap(waiting, abandoned) }

// do sends a call, which is one of the types above, and waits for the answer, which
// decode has read then. What decode wrote must not be looked at after an error.
func (c *Client) do(ctx context.Context, base *rawCall, routed protocol.Message) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	base.ctx, base.client = ctx, c
	_, err := c.roundTrip(ctx, controlTimeout, routed)
	return err
}

// versionRange is what a broker knows of one kind of request.
type versionRange struct{ oldest, newest int16 }

// pickVersion returns the first of versions that the broker at the other end of rw knows.
// The library's own negotiation is bounded by what the library knows, so the broker is
// asked once more.
func (c *Client) pickVersion(ctx context.Context, rw io.ReadWriter, key protocol.ApiKey, versions []int16) (int16, error) {
	known, err := c.brokerVersions(ctx, rw)
	if err != nil {
		return 0, err
	}
	have := known[key]
	for _, v := range versions {
		if v >= have.oldest && v <= have.newest {
			return v, nil
		}
	}
	return 0, fmt.Errorf("the broker knows versions %d to %d of %s, none of which is among %v: %w",
		have.oldest, have.newest, key, versions, kafkago.UnsupportedVersion)
}

// brokerVersions asks a broker which versions of requests it knows, unless that is known.
// refresh forgets what is known: a broker that was replaced breaks connections.
func (c *Client) brokerVersions(ctx context.Context, rw io.ReadWriter) (map[protocol.ApiKey]versionRange, error) {
	conn, ok := rw.(interface{ RemoteAddr() net.Addr })
	if !ok {
		return nil, errors.New("the connection has no address")
	}
	addr := conn.RemoteAddr().String()
	c.mu.Lock()
	known := c.versions[addr]
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	answer, err := exchange(ctx, rw, appendHeader(nil, protocol.ApiVersions, 0), nil)
	if err != nil {
		return nil, err
	}
	if known, err = readVersions(&answerReader{b: answer[correlationSize:]}); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.versions == nil {
		c.versions = map[string]map[protocol.ApiKey]versionRange{}
	}
	c.versions[addr] = known
	return known, nil
}

func readVersions(r *answerReader) (map[protocol.ApiKey]versionRange, error) {
	if err := codeError(r.int16(), ""); err != nil {
		return nil, err
	}
	known := map[protocol.ApiKey]versionRange{}
	for range r.length(false) {
		key := protocol.ApiKey(r.int16())
		known[key] = versionRange{oldest: r.int16(), newest: r.int16()}
	}
	return known, r.err()
}

// no is false as a field.
const no = 0

func appendInt32(b []byte, v int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) }
func appendInt64(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) }

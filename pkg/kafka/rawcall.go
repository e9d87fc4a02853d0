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

// rawCall is a request that this package encodes and decodes, because the library does
// not know the versions with topic ids and leader epochs.
type rawCall struct {
	ctx    context.Context //nolint:containedctx // of the one exchange that this value is
	client *Client
	key    protocol.ApiKey
	// versions are the versions that encode and decode support, newest first.
	versions     []int16
	flexibleFrom int16
	// encode appends the body and decode reads it. decode may run after the caller has
	// returned.
	encode func(b []byte, version int16) []byte
	decode func(r *answerReader, version int16)

	state atomic.Int32 // one of waiting, sent, abandoned
}

const (
	waiting   = iota
	sent      // the first byte may have left
	abandoned // the caller returned earlier, so it must not be sent any more
)

// callAnswer means only that a response was decoded.
type callAnswer struct{ key protocol.ApiKey }

// clusterCall is sent to any broker.
type clusterCall struct{ *rawCall }

// brokerCall is sent to one broker.
type brokerCall struct {
	*rawCall
	broker int32
}

// groupCall is sent to the coordinator of a group.
type groupCall struct {
	*rawCall
	group string
}

// ApiKey returns the request's API key.
func (c *rawCall) ApiKey() protocol.ApiKey { return c.key } //nolint:staticcheck // the library's interface names it so

// ApiKey returns the response's API key.
func (a *callAnswer) ApiKey() protocol.ApiKey { return a.key } //nolint:staticcheck // the library's interface names it so

// Broker routes the request to its broker.
func (c *brokerCall) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: c.broker}, nil
}

// Group routes the request to the coordinator.
func (c *groupCall) Group() string { return c.group }

// Required makes the library always use RawExchange.
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

// notSent is called once, after an error. If it returns true, the request has not reached
// a broker and never will; otherwise the outcome is unknown.
func (c *rawCall) notSent() bool { return c.state.CompareAndSwap(waiting, abandoned) }

// do sends a call of one of the types above, routed, and waits until decode has read the
// response. After an error the caller must not use what decode wrote.
func (c *Client) do(ctx context.Context, base *rawCall, routed protocol.Message) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	base.ctx, base.client = ctx, c
	_, err := c.roundTrip(ctx, controlTimeout, routed)
	return err
}

// versionRange is the range of versions of one request that a broker supports.
type versionRange struct{ oldest, newest int16 }

// pickVersion returns the first of versions that the broker at the other end of rw
// supports. The library negotiates only versions that it knows itself, so the broker is
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

// brokerVersions returns the request versions that a broker supports, from the cache if
// possible. refresh clears the cache, because replacing a broker breaks connections.
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

// The encoded values of false and true.
const (
	no  = 0
	yes = 1
)

func appendInt32(b []byte, v int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) }
func appendInt64(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) }

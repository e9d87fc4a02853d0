package integration

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// settleWithin is what docs/guarantees.md promises, on a machine that has nothing else to do: the session
// of the writer that died, the time in which Kafka makes a new generation, and one longest pause of each
// that waits. Here others may keep the machine busy.
const (
	settleWithin = 30 * time.Second
	settleSlack  = 30 * time.Second
)

// A writer dies, and Kafka and ClickHouse are away, all at once. Soon after they are back everything is
// stored, once: nothing waits for the longest backoff of something that works again.
func TestSettlesAfterSeveralFaults(t *testing.T) {
	s := newSite(t, "")
	gateway, gatewayAddr := s.serve("gateway")
	first, _ := s.serve("writer")
	second, secondAddr := s.serve("writer")
	ready(gateway, gatewayAddr)
	ready(second, secondAddr)
	c := newClient(t, s.grpc, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for range 20 {
		c.send(ctx, 50)
	}
	first.kill()
	s.stopEngine()
	for range 20 {
		c.send(ctx, 50)
	}
	s.stopKafka()
	<-time.After(15 * time.Second) // backoffs have grown
	s.startKafka()
	s.startEngine()
	begun := time.Now()
	for range 5 {
		c.send(ctx, 50)
	}
	conn := open(t, s.engine.NativeAddr())
	second.eventually(settleWithin+settleSlack, func() error {
		rows, _, err := stored(conn)
		if err == nil && rows < uint64(c.sent) {
			err = fmt.Errorf("%d of %d spans are stored", rows, c.sent)
		}
		return err
	})
	t.Logf("settled after %s", time.Since(begun).Round(100*time.Millisecond))
	second.eventually(time.Minute, settled(secondAddr))
	if err := exactly(conn, c.sent)(); err != nil {
		t.Error(err)
	}
}

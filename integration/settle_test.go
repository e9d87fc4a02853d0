package integration

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// settleWithin is what docs/guarantees.md promises on an idle machine: the
// session of the dead writer, the time for a new generation in Kafka, and one
// longest backoff of each retry loop. Other work may keep the test machine
// busy.
const (
	settleWithin = 30 * time.Second
	settleSlack  = 30 * time.Second
)

// A writer dies, and Kafka and ClickHouse go down, all at once. Soon after they
// are back, everything is stored once: no retry loop waits for a long backoff
// although its dependency works again.
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
	<-time.After(15 * time.Second) // let backoffs grow
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
			err = fmt.Errorf("%d of %d spans stored", rows, c.sent)
		}
		return err
	})
	t.Logf("settled after %s", time.Since(begun).Round(100*time.Millisecond))
	second.eventually(time.Minute, settled(secondAddr))
	if err := exactly(conn, c.sent)(); err != nil {
		t.Error(err)
	}
}

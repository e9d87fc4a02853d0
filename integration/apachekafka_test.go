package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/apachekafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// apacheSite returns a site over a real Apache Kafka.
func apacheSite(t *testing.T) (*apachekafka.Broker, *site) {
	t.Helper()
	kafka := apachekafka.Start(t)
	s := &site{t: t, dir: t.TempDir(), kafkaAddr: kafka.Addr(), grpc: ports.FreeAddress(t)}
	s.startEngine()
	t.Cleanup(s.stopEngine)
	s.config = filepath.Join(s.dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q, retry_delay: 200ms}
kafka: {brokers: [%q], partitions: 6, produce_timeout: 3s}
clickhouse: {addresses: ["127.0.0.1:%d"]}
writer: {max_batch_wait: 200ms, session_timeout: 6s}
log: {format: text}
`, s.grpc, s.kafkaAddr, s.nativePort)
	if err := os.WriteFile(s.config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return kafka, s
}

// A real Apache Kafka is killed while requests are in flight: every
// acknowledged span is stored exactly once.
func TestApacheKafkaKilled(t *testing.T) {
	kafka, s := apacheSite(t)
	server, _ := s.serveReady("gateway,writer")

	c := newClient(t, s.grpc, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute) // most of it is for the broker's second start on a busy machine
	defer cancel()
	const requests = 300
	middle := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := range requests {
			if i == requests/3 {
				close(middle)
			}
			c.send(ctx, 40)
		}
	})
	select {
	case <-middle:
	case <-ctx.Done():
		t.Fatal("too few requests were acknowledged before the kill")
	}
	kafka.Kill()
	kafka.Restart()
	sending.Wait()
	t.Logf("%d spans acknowledged, %d requests sent more than once", c.sent, c.again)
	if c.again == 0 {
		t.Error("no request was in flight when the broker was killed")
	}
	server.eventually(time.Minute, exactly(open(t, s.engine.NativeAddr()), c.sent))
	if code := server.terminate(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
}

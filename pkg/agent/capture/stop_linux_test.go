package capture

import (
	"context"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// slow is a consumer that stops the capture while it holds a batch.
type slow struct {
	stop context.CancelFunc
	rows int
}

func (s *slow) Consume(ctx context.Context, rows []flow.Row) (int, error) {
	s.stop()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.rows += len(rows)
	return len(rows), nil
}

// A batch that the consumer holds when the agent stops is not sent by anything
// else.
func TestBatchInFlightAtStop(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	consumer := &slow{stop: stop}
	reg := prometheus.NewRegistry()
	c := New(fast(), consumer, Options{Registerer: reg})
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	for ctx.Err() == nil { // open short connections until a batch is in flight
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			break
		}
		conn.Close()
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		other.Close()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if lost := prom.Value(t, reg, "metaflow_capture_lost_rows_total"); consumer.rows == 0 || lost != 0 {
		t.Errorf("%d rows taken, %v lost", consumer.rows, lost)
	}
}

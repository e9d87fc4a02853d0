package kafka_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/time/rate"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// A broker reads a fixed number of bytes a second, and several times as many are produced. What is acknowledged
// stays near what the broker reads. It would be a fraction of it if requests were larger than the broker can read
// in time, or if records waited until their callers had left: the broker would mostly read copies.
func TestSlowBrokerIsKeptBusy(t *testing.T) {
	const (
		bytesPerSecond = 2_000_000
		partitions     = 12
		callers        = 150
		recordBytes    = 10_000
		timeout        = 4 * time.Second
		measured       = 3 * timeout
	)
	limit := rate.NewLimiter(bytesPerSecond, slowChunk)
	cluster := startCluster(t, kfake.ListenFn(func(network, addr string) (net.Listener, error) {
		ln, err := net.Listen(network, addr)
		return slowListener{ln, limit}, err
	}))
	client := newClient(t, cluster, func(c *kafka.Config) { c.ProduceTimeout = timeout })
	createTopic(t, client, partitions)
	producer := startProducer(t, client, kafka.ProducerOptions{})

	var acknowledged, behind, failed atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	for i := range callers {
		calls.Go(func() {
			batch := incompressible(uint64(i), partitions, recordBytes)
			for ctx.Err() == nil {
				var refused *kafka.BehindError
				switch err := producer.Produce(context.WithoutCancel(ctx), batch); {
				case err == nil:
					acknowledged.Add(1)
				case errors.As(err, &refused):
					behind.Add(1)
					pause(ctx, timeout/8)
				default:
					failed.Add(1)
				}
			}
		})
	}
	pause(ctx, timeout) // until the queues are as they will be
	before := acknowledged.Load()
	pause(ctx, measured)
	share := float64(acknowledged.Load()-before) * partitions * recordBytes / (measured.Seconds() * bytesPerSecond)
	stop()
	calls.Wait()
	t.Logf("%.0f%% of what the broker reads is acknowledged; %d calls refused at once, %d failed", 100*share, behind.Load(), failed.Load())
	if share < 0.5 || behind.Load() == 0 {
		t.Errorf("%.0f%% of what the broker reads is acknowledged, %d calls refused at once, %d failed", 100*share, behind.Load(), failed.Load())
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// incompressible returns a record for each partition.
func incompressible(seed uint64, partitions, size int) []kafka.Outgoing {
	rng := rand.New(rand.NewPCG(seed, 1))
	batch := make([]kafka.Outgoing, partitions)
	for i := range batch {
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		batch[i] = kafka.Outgoing{Partition: i, Value: value}
	}
	return batch
}

// slowListener is that of a broker which reads only so many bytes a second of all its connections.
type slowListener struct {
	net.Listener
	limit *rate.Limiter
}

func (l slowListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(slowChunk) // what waits there is on its way
	return slowConn{conn, l.limit}, nil
}

type slowConn struct {
	net.Conn
	limit *rate.Limiter
}

const slowChunk = 16 << 10

func (c slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), slowChunk)])
	if n > 0 {
		_ = c.limit.WaitN(context.Background(), n)
	}
	return n, err
}

package kafka_test

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// spoiler is a network that alters the bytes that brokers send after mark.
type spoiler struct {
	mu    sync.Mutex
	mark  []byte
	times int // how often it still alters bytes; negative means always
}

func (s *spoiler) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	return spoiltListener{l, s}, err
}

type spoiltListener struct {
	net.Listener
	by *spoiler
}

func (l spoiltListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return spoiltConn{c, l.by}, err
}

type spoiltConn struct {
	net.Conn
	by *spoiler
}

func (c spoiltConn) Write(b []byte) (int, error) {
	c.by.mu.Lock()
	defer c.by.mu.Unlock()
	if i := bytes.Index(b, c.by.mark); i >= 0 && c.by.times != 0 {
		c.by.times--
		b = bytes.Clone(b)
		b[i] ^= 1
	}
	return c.Conn.Write(b)
}

// A batch that is damaged once is fetched again. A batch that stays damaged is skipped,
// and nothing else is.
func TestDamagedBatchIsFetchedAgain(t *testing.T) {
	tests := map[string]struct {
		times int
		want  []string
	}{
		"once":   {1, []string{"before-0", "spoilt-0", "spoilt-1", "behind-0"}},
		"twice":  {2, []string{"before-0", "spoilt-0", "spoilt-1", "behind-0"}},
		"always": {-1, []string{"before-0", "corrupt", "behind-0"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			by := &spoiler{mark: []byte("spoilt-1"), times: tc.times}
			client := newClient(t, startCluster(t, kfake.ListenFn(by.listen)), func(c *kafka.Config) { c.Compression = "none" })
			createTopic(t, client, 1)
			producer := startProducer(t, client, kafka.ProducerOptions{})
			for _, b := range []struct {
				prefix string
				n      int
			}{{"before", 1}, {"spoilt", 2}, {"behind", 1}} {
				if err := producer.Produce(t.Context(), numbered(0, b.prefix, b.n)); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for next := int64(0); next < 4; {
				b, err := client.Fetch(t.Context(), topic, 0, next, 1, time.Second)
				var corrupt *kafka.CorruptError
				switch {
				case errors.As(err, &corrupt):
					got, next = append(got, "corrupt"), corrupt.Next
				case err != nil:
					t.Fatal(err)
				default:
					got, next = append(got, values(b.Records)...), b.Next
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

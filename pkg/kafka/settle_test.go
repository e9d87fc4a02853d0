package kafka_test

import (
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// deafConn carries requests, but from the nth request of a kind on no response returns,
// as if the network drops the connection's traffic.
type deafConn struct {
	net.Conn
	key  kmsg.Key
	nth  *atomic.Int32
	deaf atomic.Bool
}

func (c *deafConn) Write(b []byte) (int, error) {
	if len(b) > 6 && binary.BigEndian.Uint16(b[4:]) == uint16(c.key) && c.nth.Add(-1) == 0 {
		c.deaf.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
	}
}

// A dead connection costs a member, and the members that wait for it, one session timeout
// rather than the rebalance timeout.
func TestDeadConnectionCostsOneSession(t *testing.T) {
	for name, tc := range map[string]struct {
		key kmsg.Key
		nth int32
	}{
		"joining":     {kmsg.JoinGroup, 2}, // the first one gives the member its id
		"syncing":     {kmsg.SyncGroup, 1},
		"a heartbeat": {kmsg.Heartbeat, 3},
		"looking":     {kmsg.FindCoordinator, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := startCluster(t)
			client := newClient(t, cluster, nil)
			createTopic(t, client, 4)
			startMember(t, client, nil).await(4)

			cut := newClient(t, cluster, nil)
			var nth atomic.Int32
			nth.Store(tc.nth)
			cut.Intercept(func(c net.Conn) net.Conn { return &deafConn{Conn: c, key: tc.key, nth: &nth} })
			begun := time.Now()
			startMember(t, cut, nil).await(2)
			wait.Until(t, "the connection is cut", func() bool { return nth.Load() <= 0 })
			took := time.Since(begun)
			t.Logf("it took %s", took)
			if took >= memberOptions.RebalanceTimeout {
				t.Errorf("the second member got its partitions after %s, the rebalance timeout is %s", took, memberOptions.RebalanceTimeout)
			}
		})
	}
}

package control_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// BenchmarkPush1000 measures the time from an operator's request until the last of a
// thousand agents, each with its own connection, has the new configuration. Agents and
// server share this machine. The goal is two seconds.
func BenchmarkPush1000(b *testing.B) {
	const agents = 1000
	st := newSetting(b)
	st.edit = func(cfg *control.Config) { cfg.NewAgentsPerMinute = 10 * agents } // all come from one address
	r := st.start(b, "a")
	received := make(chan uint64, agents)
	for i := range agents {
		streamTo(b, r, fmt.Sprint("agent-", i), received)
	}
	for range agents {
		<-received // the first configuration
	}
	await(b, r, "all agents", func(list []api.Agent) bool { return len(list) == agents })
	var slowest time.Duration
	round := 0
	for b.Loop() {
		round++
		begun := time.Now()
		u := update(b, r, "default", fmt.Sprintf("inputs: {integration: {listen_port: %d}}", 4000+round%2))
		for range agents {
			if revision := <-received; revision != u.Revision {
				b.Fatalf("revision %d came, want %d", revision, u.Revision)
			}
		}
		slowest = max(slowest, time.Since(begun))
	}
	b.ReportMetric(float64(slowest.Milliseconds()), "ms-slowest")
}

// streamTo connects an agent that confirms each configuration and reports its revision.
func streamTo(b *testing.B, r *replica, id string, received chan<- uint64) {
	b.Helper()
	conn, err := grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := agentv1.NewControlServiceClient(conn).Connect(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: registration(id, "i")}}); err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	b.Cleanup(func() {
		cancel()
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			c := m.GetConfiguration()
			if c == nil {
				continue
			}
			received <- c.Revision
			beat := &agentv1.Heartbeat{GroupId: c.GroupId, Revision: c.Revision}
			if stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: beat}}) != nil {
				return
			}
		}
	}()
}

package rpc_test

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// line is a consumer of a fixed capacity: requests wait in the order in which they came
// until serve finishes them.
type line struct {
	entered atomic.Int64

	mu      sync.Mutex
	waiting []waiting
}

type waiting struct {
	from netip.Addr
	done chan struct{}
}

func (l *line) Consume(_ context.Context, req signal.Request) (signal.Result, error) {
	w := waiting{req.Peer.Addr(), make(chan struct{})}
	l.mu.Lock()
	l.waiting = append(l.waiting, w)
	l.mu.Unlock()
	l.entered.Add(1)
	<-w.done
	return signal.Result{}, nil
}

// serve finishes up to n requests and returns how many, and how many of them are not from
// one client.
func (l *line) serve(n int, except netip.Addr) (served, others int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = min(n, len(l.waiting))
	for _, w := range l.waiting[:n] {
		if w.from != except {
			others++
		}
		close(w.done)
	}
	l.waiting = l.waiting[n:]
	return n, others
}

// Some clients share a server that can do twenty requests in a step of time. All but one
// send their share in each step, and again what was refused. While the last one sends fifty
// times its share over several connections, the others get at least 80% done of what they get
// done without it. Four clients that fill the server get nearly the four fifths that
// are theirs beside a fifth one. Steps are counted, not timed, so the speed of the machine does not matter.
func TestAGreedyClientHardlySlowsOthers(t *testing.T) {
	const inFlight = 128
	req := otlptest.Sized(2000)
	size := int64(proto.Size(req))
	tests := map[string]struct {
		clients, share int // that are not greedy, and what each sends in a step
		bound          func(*rpc.Config)
		least, most    float64 // of what they get done alone
	}{
		"requests in flight":     {16, 1, func(c *rpc.Config) { c.MaxRequestsInFlight = inFlight }, 0.8, 1.1},
		"bytes in flight":        {16, 1, func(c *rpc.Config) { c.MaxRequestBytes, c.MaxBytesInFlight = size, inFlight*size }, 0.8, 1.1},
		"without shares":         {4, 5, func(c *rpc.Config) { c.MaxRequestsInFlight, c.PeerShare = inFlight, 1 }, 0, 0.1},
		"four clients":           {4, 4, func(c *rpc.Config) { c.MaxRequestsInFlight = inFlight }, 0.8, 1.1},
		"four clients that fill": {4, 5, func(c *rpc.Config) { c.MaxRequestsInFlight = inFlight }, 0.65, 0.9},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			// One connection may get every place of the line. Its other requests are to be refused then,
			// not to wait in the client for a stream.
			cfg.MaxConcurrentStreams = 8 * inFlight
			tc.bound(&cfg)
			r := newRace(t, cfg, req, tc.clients, tc.share)
			alone, beside := 0, 0
			for range 2 {
				alone += r.phase(t, false)
				beside += r.phase(t, true)
			}
			ratio := float64(beside) / float64(alone)
			t.Logf("the others get %d requests done alone and %d beside the greedy client: %.2f", alone, beside, ratio)
			if ratio < tc.least || ratio > tc.most {
				t.Errorf("the others get %.2f of their requests done beside the greedy client, want %.2f to %.2f", ratio, tc.least, tc.most)
			}
		})
	}
}

const (
	capacity = 20 // requests in a step
	greed    = 50 // times its share
)

// race is a server with clients.
type race struct {
	line   line
	req    *coltracepb.ExportTraceServiceRequest
	others []coltracepb.TraceServiceClient
	share  int            // requests of each of them in a step
	again  []atomic.Int64 // refused requests of each, to be sent again
	greedy []coltracepb.TraceServiceClient
	from   netip.Addr // of greedy

	started, refused, answered atomic.Int64
}

func newRace(t *testing.T, cfg rpc.Config, req *coltracepb.ExportTraceServiceRequest, clients, share int) *race {
	t.Helper()
	r := &race{req: req, share: share, again: make([]atomic.Int64, clients), from: netip.MustParseAddr("127.0.1.1")}
	srv := start(t, cfg, &r.line, rpc.Options{})
	t.Cleanup(func() { r.line.serve(math.MaxInt, r.from) }) // the server waits for the line when it stops
	for i := range clients {
		r.others = append(r.others, clientFrom(t, fmt.Sprintf("127.0.0.%d", 2+i), srv.Addr()))
	}
	for range 4 {
		r.greedy = append(r.greedy, clientFrom(t, r.from.String(), srv.Addr()))
	}
	return r
}

// phase returns what the others get done in some steps, after the first steps have filled
// the line.
func (r *race) phase(t *testing.T, greedy bool) (done int) {
	t.Helper()
	const first, counted = 10, 15
	for i := range first + counted {
		others := r.step(t, greedy)
		if i >= first {
			done += others
		}
	}
	for served := 1; served > 0; {
		served, _ = r.serve(t)
	}
	for i := range r.again {
		r.again[i].Store(0)
	}
	return done
}

// step sends the requests of a step, the greedy client's first, and serves. It returns how many requests of the others
// were served.
func (r *race) step(t *testing.T, greedy bool) (others int) {
	t.Helper()
	if greedy {
		for i := range greed * r.share {
			r.export(t, r.greedy[i%len(r.greedy)], nil)
		}
		r.settle(t)
	}
	for i, c := range r.others {
		for range int64(r.share) + r.again[i].Swap(0) {
			r.export(t, c, &r.again[i])
		}
	}
	r.settle(t)
	_, others = r.serve(t)
	return others
}

func (r *race) settle(t *testing.T) {
	t.Helper()
	wait.Until(t, "every request is in the line or refused", func() bool {
		return r.line.entered.Load()+r.refused.Load() == r.started.Load()
	})
}

// serve returns when the served clients have their answers.
func (r *race) serve(t *testing.T) (served, others int) {
	t.Helper()
	before := r.answered.Load()
	served, others = r.line.serve(capacity, r.from)
	wait.Until(t, "the served requests are answered", func() bool { return r.answered.Load() == before+int64(served) })
	return served, others
}

func (r *race) export(t *testing.T, c coltracepb.TraceServiceClient, again *atomic.Int64) {
	r.started.Add(1)
	go func() {
		_, err := c.Export(context.WithoutCancel(t.Context()), r.req)
		if err == nil {
			r.answered.Add(1)
			return
		}
		if status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
		if again != nil {
			again.Add(1)
		}
		r.refused.Add(1)
	}()
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// draining runs a drainer of r until the test ends.
func draining(t *testing.T, r *rig) *drainer {
	t.Helper()
	d := newDrainer(r.pipe, r.parking)
	d.retryDelay, d.holdTick, d.parkedInterval, d.parkAfter = time.Millisecond, time.Millisecond, time.Millisecond, 20*time.Millisecond
	d.holdFailed, d.holdParked = 10*time.Millisecond, 10*time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (s *fakeServers) answers(f func([]byte) (signal.Result, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// spoolRequests appends n requests to the spool and returns them.
func spoolRequests(t *testing.T, r *rig, n int) (bodies [][]byte) {
	t.Helper()
	r.servers.set(0, true)
	gen := otlptest.New(1, otlptest.Options{Start: time.Now()})
	for range n {
		body := gen.RequestBytes(5)
		if res, err := r.Consume(t.Context(), requestOf(body, sender)); err != nil || res.Rejected != 0 {
			t.Fatalf("consume = %+v, %v", res, err)
		}
		bodies = append(bodies, body)
	}
	return bodies
}

// refusing returns err or res for one of the requests.
func refusing(body []byte, res signal.Result, err error) func([]byte) (signal.Result, error) {
	return func(b []byte) (signal.Result, error) {
		if bytes.Equal(b, body) {
			return res, err
		}
		return signal.Result{}, nil
	}
}

// Acknowledged data is never dropped: a request that a server rejects out of
// the spool, wholly or in part, is parked with the cause, and an operator sends
// it again after the cause is fixed.
func TestRejectedSpooledRequestIsParked(t *testing.T) {
	tests := map[string]struct {
		res     signal.Result
		err     error
		refused int64
	}{
		"all":  {err: fault.As(fault.Rejected, errors.New("no such data")), refused: 5},
		"some": {res: signal.Result{Rejected: 2, Message: "no such data"}, refused: 2},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 16<<20)
			bodies := spoolRequests(t, r, 20)
			r.servers.answers(refusing(bodies[3], tc.res, tc.err))
			draining(t, r)
			r.servers.set(0, false)
			wait.Until(t, "an empty spool", func() bool { return r.disk.Len() == 0 })
			heads, err := r.parking.Folder.List()
			if err != nil || len(heads) != 1 {
				t.Fatalf("%d requests parked: %v", len(heads), err)
			}
			h := heads[0]
			if h.Signal != traces.Signal.Items || h.Items != 5 || h.Refused != tc.refused || h.Waits || !strings.Contains(h.Cause, "no such data") || time.Since(h.Received) > time.Hour {
				t.Errorf("parked as %+v", h)
			}
			if got := testutil.ToFloat64(r.metrics.parked); got != float64(tc.refused) || testutil.ToFloat64(r.metrics.lost) != 0 {
				t.Errorf("%v spans counted as parked, want %d", got, tc.refused)
			}
			for _, fixed := range []bool{false, true} {
				if fixed {
					r.servers.answers(func([]byte) (signal.Result, error) { return signal.Result{}, nil })
				}
				report, err := RetryParked(t.Context(), r.parking.Folder, r.servers, RetryOptions{
					Logger: slog.New(slog.DiscardHandler), Keep: func(parked.Head) bool { return true }, Timeout: time.Minute,
				})
				if err != nil || (report.Sent == 1) != fixed || len(report.Failed) == report.Sent || (r.parked(t) == 0) != fixed {
					t.Errorf("fixed %v: RetryParked = %+v, %v", fixed, report, err)
				}
			}
			deliveries := r.servers.stored[string(bodies[3])]
			if n := len(deliveries); n == 0 || !deliveries[n-1] {
				t.Errorf("resend marks %v, want the last one set", deliveries)
			}
		})
	}
}

// Requests that fail temporarily do not hold up younger ones. They are parked
// while others pass, and the agent delivers them once an operator has fixed the
// cause.
func TestFailingRequestsLetOthersPass(t *testing.T) {
	r := newRig(t, 16<<20)
	bodies := spoolRequests(t, r, 60)
	var mu sync.Mutex
	fixed := false
	failing := map[string]bool{}
	for _, b := range bodies[:3*drainWorkers] { // the oldest, and more than are in flight at once
		failing[string(b)] = true
	}
	r.servers.answers(func(b []byte) (signal.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		if failing[string(b)] && !fixed {
			return signal.Result{}, fault.As(fault.Overload, errors.New("max.message.bytes of the topic is too small"))
		}
		return signal.Result{}, nil
	})
	draining(t, r)
	r.servers.set(0, false)
	delivered := func() int {
		r.servers.mu.Lock()
		defer r.servers.mu.Unlock()
		return len(r.servers.stored)
	}
	wait.Until(t, "the others are delivered", func() bool { return delivered() == len(bodies)-len(failing) })
	wait.Until(t, "the failing requests are parked", func() bool {
		r.accepted.Store(time.Now().UnixNano()) // as if others went on, live
		return r.disk.Len() == 0
	})
	if n := r.parked(t); n != len(failing) {
		t.Errorf("%d requests parked, want %d", n, len(failing))
	}
	mu.Lock()
	fixed = true
	mu.Unlock()
	wait.Until(t, "all are delivered", func() bool { return delivered() == len(bodies) && r.parked(t) == 0 })
	for b := range failing {
		if d := r.servers.stored[b]; len(d) != 1 || !d[0] {
			t.Errorf("resend marks %v, want one, set", d)
		}
	}
}

// With a full folder rejected requests stay in the spool, and are parked when
// there is room.
func TestFullFolderKeepsRequestsInSpool(t *testing.T) {
	r := newRig(t, 16<<20)
	var err error
	if r.parking.Folder, err = parked.Open(r.parking.Folder.Dir(), 10<<10); err != nil {
		t.Fatal(err)
	}
	if err := r.parking.Folder.Put(parked.Head{Signal: flows.Signal.Items}, make([]byte, 9500)); err != nil {
		t.Fatal(err)
	}
	bodies := spoolRequests(t, r, 20)
	r.servers.answers(refusing(bodies[0], signal.Result{}, fault.As(fault.Rejected, errors.New("no"))))
	d := draining(t, r)
	r.servers.set(0, false)
	wait.Until(t, "all others are delivered", func() bool { return r.disk.Len() == 1 && d.held.unparked() == 1 })
	if testutil.ToFloat64(r.metrics.parked) != 0 || testutil.ToFloat64(r.metrics.lost) != 0 {
		t.Error("the request is counted as parked or lost")
	}
	heads, err := r.parking.Folder.List()
	if err != nil || len(heads) != 1 {
		t.Fatalf("%d requests parked: %v", len(heads), err)
	}
	if err := r.parking.Folder.Remove(heads[0].Name); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, "the request is parked", func() bool { return r.disk.Len() == 0 && r.parked(t) == 1 })
}

// With a full folder, requests that may be accepted later are retried out of
// the spool.
func TestFullFolderDoesNotStopRetries(t *testing.T) {
	r := newRig(t, 16<<20)
	var err error
	if r.parking.Folder, err = parked.Open(r.parking.Folder.Dir(), 0); err != nil {
		t.Fatal(err)
	}
	bodies := spoolRequests(t, r, 20)
	r.servers.answers(refusing(bodies[0], signal.Result{}, fault.As(fault.Overload, errors.New("not now"))))
	d := draining(t, r)
	r.servers.set(0, false)
	wait.Until(t, "the others are delivered, and this request waits to be parked", func() bool {
		r.accepted.Store(time.Now().UnixNano()) // as if others went on, live
		return r.disk.Len() == 1 && d.held.unparked() == 1
	})
	r.servers.answers(func([]byte) (signal.Result, error) { return signal.Result{}, nil })
	wait.Until(t, "the request is delivered", func() bool { return r.disk.Len() == 0 })
}

// MaxAge bounds how long parked requests are kept; expired ones are counted as
// lost.
func TestParkedAge(t *testing.T) {
	r := newRig(t, 1<<20)
	now := time.Now()
	for _, age := range []time.Duration{time.Hour, time.Minute} {
		if err := r.parking.Folder.Put(parked.Head{Signal: traces.Signal.Items, Items: 5, Refused: 3, Parked: now.Add(-age)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		age  time.Duration
		left int
	}{{0, 2}, {30 * time.Minute, 1}} {
		r.parking.MaxAge = tc.age
		if err := newDrainer(r.pipe, r.parking).expire(now); err != nil || r.parked(t) != tc.left {
			t.Errorf("age %s: %d requests left, %v", tc.age, r.parked(t), err)
		}
	}
	if got := testutil.ToFloat64(r.metrics.lost); got != 3 {
		t.Errorf("%v spans counted as lost", got)
	}
}

// Spans that no server ever stores are rejected before the others are spooled
// and acknowledged.
func TestUnstorableSpansAreRejectedBeforeSpooling(t *testing.T) {
	r := newRig(t, 1<<20)
	r.servers.set(0, true)
	span := func(trace byte) *tracepb.Span {
		return &tracepb.Span{TraceId: append(make([]byte, 15), trace), SpanId: []byte{1, 2, 3, 4, 5, 6, 7, 8}}
	}
	body := func(spans ...*tracepb.Span) []byte {
		b, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}}}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	res, err := r.Consume(t.Context(), requestOf(body(span(1), span(0), span(2)), sender))
	if err != nil || res.Rejected != 1 || !strings.Contains(res.Message, "trace_id") {
		t.Fatalf("consume = %+v, %v", res, err)
	}
	if res, err := r.Consume(t.Context(), requestOf(body(span(0)), sender)); err != nil || res.Rejected != 1 {
		t.Fatalf("consume = %+v, %v", res, err)
	}
	if r.disk.Len() != 1 || testutil.ToFloat64(r.metrics.spooled) != 2 {
		t.Errorf("%d requests in the spool, %v spans counted", r.disk.Len(), testutil.ToFloat64(r.metrics.spooled))
	}
	draining(t, r)
	r.servers.set(0, false)
	wait.Until(t, "an empty spool", func() bool { return r.disk.Len() == 0 })
	for b := range r.servers.stored {
		if traces.Signal.Count([]byte(b)) != 2 {
			t.Errorf("%d spans delivered", traces.Signal.Count([]byte(b)))
		}
	}
}

// countingServer accepts requests up to a size over gRPC and counts their
// spans.
type countingServer struct {
	mu    sync.Mutex
	spans map[string]int
}

func (s *countingServer) Consume(_ context.Context, req signal.Request) (signal.Result, error) {
	var m coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(req.Body, &m); err != nil {
		return signal.Result{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range m.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				s.spans[fmt.Sprintf("%x", sp.GetSpanId())]++
			}
		}
	}
	return signal.Result{}, nil
}

// A request within the agent's limit that exceeds the server's, because of the
// added sender's address, is sent in pieces, live and from the spool. A single
// span that is too large for any server is rejected to the sender, and parked
// out of the spool.
func TestTooLargeRequestIsSentInPieces(t *testing.T) {
	const limit = 4 << 20
	srv := &countingServer{spans: map[string]int{}}
	cfg := rpc.DefaultConfig()
	cfg.Listen, cfg.MaxRequestBytes = "127.0.0.1:0", limit
	server, err := rpc.New(cfg, []rpc.Sink{{Signal: traces.Signal, Consumer: srv}}, rpc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	upCfg := upstream.DefaultConfig()
	upCfg.Addresses = []string{net.JoinHostPort("127.0.0.1", fmt.Sprint(server.Addr().(*net.TCPAddr).Port))}
	client, err := upstream.New(upCfg, upstream.Options{AgentID: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}

	r := newRig(t, 64<<20)
	r.up, r.liveTime = client, 30*time.Second
	r.configure(agentconfig.Default())
	random := rand.New(rand.NewPCG(1, 2))
	request := func(spans, bytes int) []byte {
		var all []*tracepb.Span
		for range spans {
			id := make([]byte, 16)
			for j := range id {
				id[j] = byte(random.IntN(255) + 1)
			}
			all = append(all, &tracepb.Span{TraceId: id, SpanId: id[:8], Name: strings.Repeat("x", bytes/spans-64)})
		}
		m := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: all}}}}}
		all[0].Name += strings.Repeat("y", bytes-proto.Size(m))
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := 0
	body := request(100, limit-10)
	if len(body) >= limit {
		t.Fatalf("the request has %d bytes", len(body))
	}
	if res, err := r.Consume(t.Context(), requestOf(body, sender)); err != nil || res.Rejected != 0 || r.disk.Len() != 0 {
		t.Fatalf("live: %+v, %v, %d in the spool", res, err, r.disk.Len())
	}
	want += 100
	if _, err := r.Consume(t.Context(), requestOf(request(1, limit+1000), sender)); fault.ClassOf(err) != fault.Rejected {
		t.Errorf("one span, live: %v", err)
	}

	r.up = &fakeServers{away: true}
	for _, spans := range []int{80, 1} {
		if _, err := r.Consume(t.Context(), requestOf(request(spans, limit+1000*spans), sender)); err != nil {
			t.Fatal(err)
		}
	}
	want += 80
	r.up = client
	draining(t, r)
	wait.Until(t, "an empty spool", func() bool { return r.disk.Len() == 0 })
	if n := r.parked(t); n != 1 {
		t.Errorf("%d requests parked, want the one that is too large for any server", n)
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for id, n := range srv.spans {
		if n != 1 {
			t.Errorf("span %s arrived %d times", id, n)
		}
	}
	if len(srv.spans) != want {
		t.Errorf("%d spans arrived, want %d", len(srv.spans), want)
	}
}

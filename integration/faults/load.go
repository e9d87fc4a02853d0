package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	spansPerTrace = 4
	flowItems     = 50
	// attemptTimeout is that of a collector's exporter, and a little more than a
	// gateway waits for Kafka.
	attemptTimeout = 8 * time.Second
	// maxRetryPause is shorter than a collector's 30 s, which would be most of the time
	// that is measured until all is settled.
	maxRetryPause = 2 * time.Second
)

// load sends spans and flows until it is stopped.
type load struct {
	spans, flows *ledger
	spanItems    int // of a request
	spanSenders  []int
	flowSenders  []int
	quiet        sync.RWMutex // held by a fault that needs no request under way
	quieting     atomic.Bool
	limit        *rate.Limiter // of spans
	senders      sync.WaitGroup
	stop         context.CancelFunc // ends new requests; those under way are repeated
	kill         context.CancelFunc // ends everything
}

// outcome of one attempt to send a request.
type outcome struct {
	err   error
	final bool          // err will not go away
	pause time.Duration // that the server asked for
}

// attempt sends a request once more.
type attempt func(ctx context.Context, n int) outcome

// startLoad starts the senders: collectors, which send spans over OTLP/gRPC to any
// gateway, programs, which send spans over OTLP/HTTP to one agent each, and agents, which send
// flows over gRPC to any gateway.
func startLoad(perSecond float64, spanItems, collectors int, gateways, agents []string) (*load, error) {
	l := &load{
		spans: newLedger("spans"), flows: newLedger("flows"), spanItems: spanItems,
		limit: rate.NewLimiter(rate.Limit(perSecond), spanItems),
	}
	stopping, stop := context.WithCancel(context.Background())
	ctx, kill := context.WithCancel(context.Background())
	l.stop, l.kill = stop, kill
	sender := 0
	next := func(senders *[]int) int {
		sender++
		*senders = append(*senders, sender)
		return sender
	}
	for range collectors {
		conns, err := dialAll(gateways)
		if err != nil {
			return nil, err
		}
		id := next(&l.spanSenders)
		l.senders.Go(func() { l.sendSpans(ctx, stopping, id, overGRPC(conns)) })
	}
	for _, addr := range agents {
		id := next(&l.spanSenders)
		l.senders.Go(func() { l.sendSpans(ctx, stopping, id, overHTTP(addr)) })
	}
	conns, err := dialAll(gateways)
	if err != nil {
		return nil, err
	}
	id := next(&l.flowSenders)
	l.senders.Go(func() { l.sendFlows(ctx, stopping, id, conns) })
	return l, nil
}

// finish lets requests under way be acknowledged, and gives up those that are not in time.
func (l *load) finish(within time.Duration) {
	l.stop()
	timer := time.AfterFunc(within, l.kill)
	defer timer.Stop()
	l.senders.Wait()
	l.kill()
}

// silence returns once no request is under way, and lets none begin until the function
// that it returns is called.
func (l *load) silence() func() {
	l.quieting.Store(true)
	l.quiet.Lock()
	return func() {
		l.quieting.Store(false)
		l.quiet.Unlock()
	}
}

func dialAll(addrs []string) ([]*grpc.ClientConn, error) {
	var conns []*grpc.ClientConn
	for _, addr := range addrs {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxRetryPause},
				MinConnectTimeout: 2 * time.Second,
			}))
		if err != nil {
			return nil, err
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

// sendSpans sends one request after the other.
func (l *load) sendSpans(ctx, stopping context.Context, sender int, to func(request []byte) attempt) {
	rng := rand.New(rand.NewPCG(uint64(sender), 1)) //nolint:gosec // no secret
	b := newSpanBuilder(sender)
	for l.limit.WaitN(stopping, l.spanItems) == nil {
		l.quiet.RLock()
		number := l.spans.begin(sender, l.spanItems)
		l.deliver(ctx, l.spans, number, rng, to(b.build(number, l.spanItems)))
		l.quiet.RUnlock()
	}
}

// deliver repeats a request until it is acknowledged or refused for good.
func (l *load) deliver(ctx context.Context, in *ledger, number int, rng *rand.Rand, try attempt) {
	pause := 200 * time.Millisecond
	for n := 0; ; n++ {
		call, cancel := context.WithTimeout(ctx, attemptTimeout)
		o := try(call, n)
		cancel()
		switch {
		case o.err == nil:
			in.acknowledge(number, n)
			return
		case ctx.Err() != nil:
			return
		case o.final:
			in.refuse(number, o.err.Error())
			return
		}
		if retry.Sleep(ctx, max(o.pause, pause/2+time.Duration(rng.Int64N(int64(pause))))) != nil {
			return
		}
		pause = min(pause*3/2, maxRetryPause)
	}
}

// overGRPC sends to one gateway after the other, as through a load balancer.
func overGRPC(conns []*grpc.ClientConn) func([]byte) attempt {
	turn := 0
	return func(request []byte) attempt {
		turn++
		first := turn
		return func(ctx context.Context, n int) outcome {
			var reply coltracepb.ExportTraceServiceResponse
			conn := conns[(first+n)%len(conns)]
			err := conn.Invoke(ctx, coltracepb.TraceService_Export_FullMethodName, request, &reply, grpc.ForceCodec(otlptest.Raw))
			if p := reply.GetPartialSuccess(); err == nil && p.GetRejectedSpans() > 0 {
				return outcome{err: fmt.Errorf("%d spans rejected: %s", p.GetRejectedSpans(), p.GetErrorMessage()), final: true}
			}
			return grpcOutcome(err)
		}
	}
}

// grpcOutcome interprets an error as the OTLP specification says.
func grpcOutcome(err error) outcome {
	if err == nil {
		return outcome{}
	}
	o := outcome{err: err}
	var asked bool
	o.pause, asked = otlptest.RetryDelay(err)
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
	case codes.ResourceExhausted:
		o.final = !asked
	default:
		o.final = true
	}
	return o
}

// overHTTP posts to one agent.
func overHTTP(addr string) func([]byte) attempt {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	return func(request []byte) attempt {
		return func(ctx context.Context, _ int) outcome {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/traces", bytes.NewReader(request))
			if err != nil {
				return outcome{err: err, final: true}
			}
			req.Header.Set("Content-Type", "application/x-protobuf")
			resp, err := client.Do(req)
			if err != nil {
				return outcome{err: err}
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				return outcome{err: err} // the answer is cut: nothing is known
			}
			switch resp.StatusCode {
			case http.StatusOK:
				var reply coltracepb.ExportTraceServiceResponse
				if err := proto.Unmarshal(body, &reply); err != nil {
					return outcome{err: err}
				}
				if p := reply.GetPartialSuccess(); p.GetRejectedSpans() > 0 {
					return outcome{err: fmt.Errorf("%d spans rejected: %s", p.GetRejectedSpans(), p.GetErrorMessage()), final: true}
				}
				return outcome{}
			case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
				return outcome{err: errors.New(resp.Status)}
			default:
				return outcome{err: fmt.Errorf("%s: %q", resp.Status, body), final: true}
			}
		}
	}
}

// spanBuilder makes requests of which every span can be told from every other.
type spanBuilder struct {
	resource *resourcepb.Resource
	service  string
}

func newSpanBuilder(sender int) *spanBuilder {
	service := fmt.Sprintf("service-%d", sender)
	return &spanBuilder{service: service, resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
		otlptest.Text("service.name", service), otlptest.Text("k8s.pod.name", service+"-6b7f9c5d4-x2x7q"), otlptest.Text("k8s.namespace.name", "faults"),
	}}}
}

// build returns the request with this number. The first half of a trace id is the
// number, so that ClickHouse finds new requests by the table's order. A span's id is the
// request's number and its own.
func (b *spanBuilder) build(number, items int) []byte {
	now := uint64(time.Now().UnixNano())
	scope := &tracepb.ScopeSpans{Spans: make([]*tracepb.Span, items)}
	for i := range items {
		trace := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(number))
		trace = binary.BigEndian.AppendUint64(trace, uint64(i/spansPerTrace)*0x9e3779b97f4a7c15+1)
		scope.Spans[i] = &tracepb.Span{
			TraceId: trace, SpanId: binary.BigEndian.AppendUint64(nil, uint64(number)<<itemBits|uint64(i)),
			Name: "GET /items", Kind: tracepb.Span_SPAN_KIND_SERVER,
			StartTimeUnixNano: now + uint64(i), EndTimeUnixNano: now + uint64(i) + uint64(1+i%50)*uint64(time.Millisecond),
			Attributes: []*commonpb.KeyValue{otlptest.Text("http.request.method", "GET"), otlptest.Text("http.route", "/items")},
		}
	}
	req := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{Resource: b.resource, ScopeSpans: []*tracepb.ScopeSpans{scope}}}}
	out, err := proto.Marshal(req)
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return out
}

// sendFlows sends flows as an agent does: it marks every attempt but the first.
func (l *load) sendFlows(ctx, stopping context.Context, sender int, conns []*grpc.ClientConn) {
	rng := rand.New(rand.NewPCG(uint64(sender), 2)) //nolint:gosec // no secret
	agent := fmt.Sprintf("faults-%d", sender)
	pace := time.NewTicker(500 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-stopping.Done():
			return
		case <-pace.C:
		}
		l.quiet.RLock()
		number := l.flows.begin(sender, flowItems)
		request := buildFlows(agent, number)
		l.deliver(ctx, l.flows, number, rng, func(ctx context.Context, n int) outcome {
			ctx = metadata.AppendToOutgoingContext(ctx, schema.MetadataAgent, agent)
			if n > 0 {
				ctx = metadata.AppendToOutgoingContext(ctx, schema.MetadataResend, "1")
			}
			var reply agentv1.ExportFlowsResponse
			err := conns[(number+n)%len(conns)].Invoke(ctx, agentv1.FlowService_ExportFlows_FullMethodName, request, &reply, grpc.ForceCodec(otlptest.Raw))
			if p := reply.GetPartialSuccess(); err == nil && p.GetRejectedFlows() > 0 {
				return outcome{err: fmt.Errorf("%d flows rejected: %s", p.GetRejectedFlows(), p.GetErrorMessage()), final: true}
			}
			return grpcOutcome(err)
		})
		l.quiet.RUnlock()
	}
}

// buildFlows returns the request with this number. A flow's connection is the request's
// number and its own, and its address is the request's number, by which the table is sorted.
func buildFlows(agent string, number int) []byte {
	now := time.Now()
	group := &agentv1.FlowGroup{NetworkNamespace: 1, Pod: agent, Namespace: "faults", Workload: "faults"}
	local := binary.BigEndian.AppendUint64([]byte{0xfd, 0, 0, 0, 0, 0, 0, 0}, uint64(number))
	for i := range flowItems {
		peer := binary.BigEndian.AppendUint64([]byte{0xfd, 1, 0, 0, 0, 0, 0, 0}, uint64(i+1))
		group.Flows = append(group.Flows, &agentv1.Flow{
			StartTimeUnixNano: uint64(now.Add(-10 * time.Second).UnixNano()), EndTimeUnixNano: uint64(now.UnixNano()) + uint64(i),
			LocalAddress: local, LocalPort: uint32(20_000 + i), PeerAddress: peer, PeerPort: 8080,
			Role: agentv1.FlowRole_FLOW_ROLE_CLIENT, State: agentv1.FlowState_FLOW_STATE_LIVING,
			Connection: uint64(number)<<itemBits | uint64(i), BytesSent: 1000, RttUs: 300, RttMinUs: 200,
		})
	}
	out, err := proto.Marshal(&agentv1.ExportFlowsRequest{AgentId: agent, Cluster: "faults", Node: agent, Groups: []*agentv1.FlowGroup{group}})
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return out
}

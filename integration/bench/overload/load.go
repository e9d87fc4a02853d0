package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

const (
	requestSpans = 200
	itemBits     = 12 // of a span's number; those above are its request's
	collectors   = 8  // over gRPC
	clients      = 4  // over HTTP
	atOnce       = 24 // requests of each that are under way at most
	// patience is how long a sender repeats a request: as long as its queue has room for others.
	patience       = 10 * time.Second
	attemptTimeout = 15 * time.Second
)

// counts is what senders saw.
type counts struct {
	requests, spans     int // accepted
	attempts            int
	refused             int // with a time to retry
	refusedWithout      int
	unanswered          int // no answer in time, or the connection broke
	givenUp             int // requests
	took                time.Duration
	firstUnknownRefusal string
}

func (c counts) minus(b counts) counts {
	c.requests, c.spans, c.attempts = c.requests-b.requests, c.spans-b.spans, c.attempts-b.attempts
	c.refused, c.refusedWithout, c.unanswered, c.givenUp = c.refused-b.refused, c.refusedWithout-b.refusedWithout, c.unanswered-b.unanswered, c.givenUp-b.givenUp
	c.took -= b.took
	return c
}

// rate is spans accepted a second.
func (c counts) rate() float64 { return float64(c.spans) / c.took.Seconds() }

// answer is the outcome of one attempt.
type answer struct {
	ok         bool
	unanswered bool
	pause      time.Duration // that the server asked for; 0 means it did not
	text       string
}

// sender sends one request once.
type sender func(ctx context.Context, request []byte) answer

// load sends requests and knows which were accepted.
type load struct {
	senders []sender
	conns   []*grpc.ClientConn
	next    atomic.Int64 // number of a request
	filler  []byte

	mu       sync.Mutex
	counted  counts
	accepted map[uint64]bool
}

func newLoad(grpcAddr, httpAddr string) (*load, error) {
	l := &load{accepted: make(map[uint64]bool), filler: make([]byte, 1<<20)}
	rng := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // repeatable is the point
	const letters = "abcdefghijklmnop"
	for i := range l.filler {
		l.filler[i] = letters[rng.IntN(len(letters))]
	}
	for i := range collectors {
		conn, err := grpc.NewClient(grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(dialFrom(fmt.Sprintf("127.9.0.%d", i+1))), grpc.WithDefaultCallOptions(grpc.ForceCodec(otlptest.Raw)))
		if err != nil {
			return nil, err
		}
		l.conns = append(l.conns, conn)
		l.senders = append(l.senders, overGRPC(conn))
	}
	for i := range clients {
		dial := dialFrom(fmt.Sprintf("127.9.1.%d", i+1))
		client := &http.Client{Transport: &http.Transport{
			DialContext:         func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
			MaxIdleConnsPerHost: atOnce,
		}}
		l.senders = append(l.senders, overHTTP(client, "http://"+httpAddr+"/v1/traces"))
	}
	return l, nil
}

// dialFrom gives each sender an address of its own, as senders on other hosts have.
func dialFrom(local string) func(context.Context, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	return func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

func (l *load) close() {
	for _, conn := range l.conns {
		_ = conn.Close()
	}
}

func (l *load) counts() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counted
}

// closed keeps some requests of each sender under way for a while, enough to use all of the way to Kafka.
func (l *load) closed(ctx context.Context, d time.Duration) {
	l.during(ctx, 3, d, func(ctx context.Context, s sender) bool {
		l.deliver(ctx, s, time.Now())
		return true
	})
}

// open sends requests on schedule for a while, however long the answers take.
func (l *load) open(ctx context.Context, spansPerSecond float64, d time.Duration) {
	every := time.Duration(float64(time.Second) * requestSpans / spansPerSecond)
	begun := time.Now()
	var due atomic.Int64
	l.during(ctx, atOnce, d, func(ctx context.Context, s sender) bool {
		at := begun.Add(time.Duration(due.Add(1)) * every)
		if retry.Sleep(ctx, time.Until(at)) != nil {
			return false
		}
		l.deliver(ctx, s, at)
		return true
	})
}

// during calls f in many goroutines for each sender, until it returns false or the time is over. What is under
// way then is finished.
func (l *load) during(ctx context.Context, each int, d time.Duration, f func(context.Context, sender) bool) {
	begun := time.Now()
	timed, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var all sync.WaitGroup
	for _, s := range l.senders {
		for range each {
			all.Go(func() {
				for timed.Err() == nil && f(timed, s) {
				}
			})
		}
	}
	<-timed.Done()
	l.mu.Lock()
	l.counted.took += time.Since(begun)
	l.mu.Unlock()
	all.Wait()
}

// deliver sends a request that was due at a time until it is accepted, or given up. It reports whether the first attempt succeeded.
func (l *load) deliver(ctx context.Context, s sender, due time.Time) bool {
	number := uint64(l.next.Add(1))
	request := l.build(number)
	for attempt := 0; ; attempt++ {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
		a := s(call, request)
		cancel()
		l.count(number, a, ctx.Err() == nil)
		if a.ok {
			return attempt == 0
		}
		if time.Since(due) > patience || retry.Sleep(ctx, max(a.pause, 100*time.Millisecond)) != nil {
			l.mu.Lock()
			l.counted.givenUp++
			l.mu.Unlock()
			return false
		}
	}
}

// count records an answer. What comes after the time does not belong to the rate.
func (l *load) count(number uint64, a answer, inTime bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.counted
	c.attempts++
	switch {
	case a.ok:
		l.accepted[number] = true
		if inTime {
			c.requests++
			c.spans += requestSpans
		}
	case a.unanswered:
		c.unanswered++
	case a.pause > 0:
		c.refused++
	default:
		c.refusedWithout++
		if c.firstUnknownRefusal == "" {
			c.firstUnknownRefusal = a.text
		}
	}
}

// calm sends at a rate until every request of the given time was accepted at once.
func (l *load) calm(ctx context.Context, spansPerSecond float64, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	every := time.NewTicker(time.Duration(float64(time.Second) * requestSpans / spansPerSecond))
	defer every.Stop()
	since := time.Now()
	for i := 0; time.Since(since) < d; i++ {
		select {
		case <-ctx.Done():
			return errors.New("requests are still refused two minutes after the overload")
		case <-every.C:
		}
		if !l.deliver(ctx, l.senders[i%len(l.senders)], time.Now()) {
			since = time.Now()
		}
	}
	return nil
}

func overGRPC(conn *grpc.ClientConn) sender {
	return func(ctx context.Context, request []byte) answer {
		var reply []byte
		err := conn.Invoke(ctx, coltracepb.TraceService_Export_FullMethodName, request, &reply)
		st := status.Convert(err)
		switch {
		case err == nil && len(reply) <= 2: // an empty partial_success at most
			return answer{ok: true}
		case st.Code() == codes.DeadlineExceeded:
			return answer{unanswered: true}
		}
		a := answer{text: fmt.Sprintf("%v %q", err, reply)}
		if st.Code() == codes.Unavailable {
			a.pause, _ = otlptest.RetryDelay(err)
		}
		return a
	}
}

func overHTTP(client *http.Client, url string) sender {
	return func(ctx context.Context, request []byte) answer {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(request))
		if err != nil {
			return answer{text: err.Error()}
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		resp, err := client.Do(req)
		if err != nil {
			return answer{unanswered: true}
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return answer{unanswered: true}
		case resp.StatusCode == http.StatusOK && len(body) <= 2:
			return answer{ok: true}
		}
		a := answer{text: resp.Status + " " + string(body)}
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && resp.StatusCode == http.StatusServiceUnavailable {
			a.pause = time.Duration(seconds) * time.Second
		}
		return a
	}
}

// build returns the request with this number. Its spans are about as large as those of instrumented services, and compress
// about as well.
func (l *load) build(number uint64) []byte {
	now := uint64(time.Now().UnixNano())
	text := func(key, value string) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
	}
	rng := rand.New(rand.NewPCG(number, 2)) //nolint:gosec // no secret
	piece := func(n int) string {
		at := rng.IntN(len(l.filler) - n)
		return string(l.filler[at : at+n])
	}
	scope := &tracepb.ScopeSpans{Spans: make([]*tracepb.Span, requestSpans)}
	for i := range scope.Spans {
		id := number<<itemBits | uint64(i)
		trace := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, id>>2), 1+rng.Uint64())
		scope.Spans[i] = &tracepb.Span{
			TraceId: trace, SpanId: binary.BigEndian.AppendUint64(nil, id), Name: "GET /items/{id}", Kind: tracepb.Span_SPAN_KIND_SERVER,
			StartTimeUnixNano: now + uint64(i), EndTimeUnixNano: now + uint64(i) + rng.Uint64N(50_000_000),
			Attributes: []*commonpb.KeyValue{
				text("http.request.method", "GET"), text("http.route", "/items/{id}"), text("url.path", "/items/"+piece(8)), text("url.scheme", "https"),
				text("server.address", "shop.example.com"), text("client.address", "192.0.2.17"), text("network.peer.address", "192.0.2.17"), text("app.session.id", piece(32)),
				text("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"), text("app.user.id", piece(12)), text("app.region", "eu-west-1"),
			},
		}
	}
	out, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
			text("service.name", "shop"), text("k8s.pod.name", "shop-6b7f9c5d4-x2x7q"), text("k8s.namespace.name", "overload"),
		}},
		ScopeSpans: []*tracepb.ScopeSpans{scope},
	}}})
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return out
}

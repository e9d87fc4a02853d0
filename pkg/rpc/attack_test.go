package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// attacker speaks HTTP/2 frame by frame, so that it can leave a message unfinished.
type attacker struct {
	net.Conn

	next uint32 // stream

	mu      sync.Mutex
	sent    *sync.Cond
	windows map[uint32]int // what may be sent on a stream; 0 is the connection
	closed  error
}

// attack connects from a loopback address.
func attack(t *testing.T, from string, to net.Addr) *attacker {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.DialContext(t.Context(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	a := &attacker{Conn: c, next: 1, windows: map[uint32]int{0: 65535}}
	a.sent = sync.NewCond(&a.mu)
	var reading sync.WaitGroup
	t.Cleanup(func() { c.Close(); reading.Wait() })
	a.write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(0x4, 0, 0, nil)...))
	reading.Go(a.read)
	return a
}

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	f := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(f, stream), payload...)
}

// write ignores errors: the server may have closed the connection, which read notices.
func (a *attacker) write(b []byte) { _, _ = a.Conn.Write(b) }

// read takes what the server sends until it closes the connection.
func (a *attacker) read() {
	header := make([]byte, 9)
	for {
		_, err := io.ReadFull(a.Conn, header)
		payload := make([]byte, int(header[0])<<16|int(header[1])<<8|int(header[2]))
		if err == nil {
			_, err = io.ReadFull(a.Conn, payload)
		}
		a.mu.Lock()
		if err != nil {
			a.closed = err
			a.sent.Broadcast()
			a.mu.Unlock()
			return
		}
		stream := binary.BigEndian.Uint32(header[5:])
		switch header[3] {
		case 0x3, 0x1: // the stream was reset, or answered
			a.windows[stream] = -1 << 40
		case 0x8:
			a.windows[stream] += int(binary.BigEndian.Uint32(payload))
		}
		a.sent.Broadcast()
		a.mu.Unlock()
	}
}

// call sends the headers of a call and returns its stream.
func (a *attacker) call(method string, more ...string) uint32 {
	var block bytes.Buffer
	fields := append([]string{
		":method", "POST", ":scheme", "http", ":path", method, ":authority", "server", "content-type", "application/grpc", "te", "trailers",
	}, more...)
	for i := 0; i < len(fields); i += 2 {
		block.WriteByte(0) // a literal that is not to be indexed
		for _, text := range fields[i : i+2] {
			writeLength(&block, len(text))
			block.WriteString(text)
		}
	}
	stream := a.next
	a.next += 2
	kind, rest := byte(0x1), block.Bytes()
	for {
		part := rest[:min(len(rest), 16<<10)]
		rest = rest[len(part):]
		flags := byte(0)
		if len(rest) == 0 {
			flags = 0x4 // the end of the headers
		}
		a.write(frame(kind, flags, stream, part))
		if len(rest) == 0 {
			break
		}
		kind = 0x9
	}
	a.mu.Lock()
	a.windows[stream] += 64 << 10
	a.mu.Unlock()
	return stream
}

// writeLength is HPACK's integer with a prefix of 7 bits.
func writeLength(b *bytes.Buffer, n int) {
	if n < 127 {
		b.WriteByte(byte(n))
		return
	}
	b.WriteByte(127)
	for n -= 127; n >= 128; n >>= 7 {
		b.WriteByte(byte(n) | 128)
	}
	b.WriteByte(byte(n))
}

// data sends bytes in frames of a size, as far as the server allows it; it is false when the server ended the stream.
func (a *attacker) data(stream uint32, size int, p []byte) bool {
	for len(p) > 0 {
		part := p[:min(len(p), size)]
		a.mu.Lock()
		for a.closed == nil && a.windows[stream] >= 0 && (a.windows[stream] < len(part) || a.windows[0] < len(part)) {
			a.sent.Wait()
		}
		ended := a.closed != nil || a.windows[stream] < 0
		a.windows[stream] -= len(part)
		a.windows[0] -= len(part)
		a.mu.Unlock()
		if ended {
			return false
		}
		a.write(frame(0x0, 0, stream, part))
		p = p[len(part):]
	}
	return true
}

// hungUp waits until the server has closed the connection.
func (a *attacker) hungUp() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.closed == nil {
		a.sent.Wait()
	}
	return a.closed
}

const export = coltracepb.TraceService_Export_FullMethodName

// clientFrom exports from a loopback address.
func clientFrom(t *testing.T, from string, to net.Addr) coltracepb.TraceServiceClient {
	t.Helper()
	return coltracepb.NewTraceServiceClient(dial(t, to, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			return dialer.DialContext(ctx, "tcp", addr)
		})))
}

// accepted sends requests one after the other and returns how many were stored.
func accepted(t *testing.T, c coltracepb.TraceServiceClient, requests int) (stored int) {
	t.Helper()
	for range requests {
		if _, err := c.Export(t.Context(), otlptest.Sized(20_000)); err != nil {
			t.Log(err)
			continue
		}
		stored++
	}
	return stored
}

// heap returns what is reachable.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Twenty-four calls announce 63 MiB each and leave their message without its end. What does not fit into the
// budget is refused before it is sent, and others are served beside the rest.
func TestUnfinishedMessagesAreBudgeted(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := testConfig()
	srv := start(t, cfg, accept, rpc.Options{Registerer: reg})
	before := heap()
	const length = 63 << 20
	message := make([]byte, length) // and so the last five bytes are missing
	binary.BigEndian.PutUint32(message[1:], length)
	var sending sync.WaitGroup
	var refused, sent sync.Map
	for i := range 24 {
		a := attack(t, "127.0.0.9", srv.Addr())
		sending.Go(func() {
			if a.data(a.call(export), 16<<10, message) {
				sent.Store(i, true)
			} else {
				refused.Store(i, true)
			}
		})
	}
	sending.Wait()
	count := func(m *sync.Map) (n int) {
		m.Range(func(any, any) bool { n++; return true })
		return n
	}
	if count(&sent) == 0 || count(&sent) > 2 {
		t.Errorf("%d of 24 messages of 63 MiB were taken, %d refused; half of %d MiB has room for 2", count(&sent), count(&refused), cfg.MaxBytesInFlight>>20)
	}
	// message itself and the copies in gRPC's buffers that are not yet reclaimed are ours too.
	if grew := heap() - before - length; grew > cfg.MaxBytesInFlight+64<<20 {
		t.Errorf("the heap grew by %d MiB, the budget is %d", grew>>20, cfg.MaxBytesInFlight>>20)
	}
	if got := prom.Value(t, reg, "metaflow_gateway_bytes_in_flight"); got < float64(count(&sent))*length {
		t.Errorf("bytes_in_flight is %v while %d messages of %d bytes arrive", got, count(&sent), length)
	}
	if got := accepted(t, clientFrom(t, "127.0.0.2", srv.Addr()), 20); got != 20 {
		t.Errorf("%d of 20 honest requests were stored", got)
	}
	runtime.KeepAlive(message)
}

// The same by services that take no spans.
func TestUnfinishedMessagesOfOtherServicesAreBudgeted(t *testing.T) {
	srv := start(t, testConfig(), accept, rpc.Options{Services: []func(grpc.ServiceRegistrar){registerControl}})
	message := make([]byte, 63<<20)
	binary.BigEndian.PutUint32(message[1:], 63<<20)
	for _, method := range []string{agentv1.ControlService_Connect_FullMethodName, "/grpc.health.v1.Health/Check"} {
		a := attack(t, "127.0.0.9", srv.Addr())
		if a.data(a.call(method), 16<<10, message) {
			t.Errorf("%s takes a message of 63 MiB", method)
		}
	}
}

func registerControl(r grpc.ServiceRegistrar) {
	agentv1.RegisterControlServiceServer(r, agentv1.UnimplementedControlServiceServer{})
}

// Two hundred calls with headers of 8 MB.
func TestHeadersAreLimited(t *testing.T) {
	srv := start(t, testConfig(), accept, rpc.Options{})
	before := heap()
	large := string(bytes.Repeat([]byte("a"), 8<<20))
	attackers := make([]*attacker, 10)
	for i := range attackers {
		attackers[i] = attack(t, "127.0.0.9", srv.Addr())
		for range 20 {
			attackers[i].call(export, "x", large)
		}
	}
	if grew := heap() - before - 8<<20; grew > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grew>>20)
	}
	if got := accepted(t, clientFrom(t, "127.0.0.2", srv.Addr()), 20); got != 20 {
		t.Errorf("%d of 20 honest requests were stored", got)
	}
	runtime.KeepAlive(attackers)
}

// Eleven connections with 1,100 calls that have no body.
func TestCallsWithoutABodyLeaveRoom(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := testConfig()
	cfg.BodyTimeout = time.Hour
	srv := start(t, cfg, accept, rpc.Options{Registerer: reg})
	seen := 0
	for range 11 {
		a := attack(t, "127.0.0.9", srv.Addr())
		for range 100 {
			a.call(export)
			seen++
		}
	}
	wait.Until(t, "all calls are admitted or refused", func() bool {
		return int(prom.Value(t, reg, "metaflow_gateway_requests_in_flight")+
			prom.Value(t, reg, "metaflow_gateway_refused_requests_total", "peer_bytes_in_flight")+
			prom.Value(t, reg, "metaflow_gateway_refused_requests_total", "peer_requests_in_flight")) == seen
	})
	if got := accepted(t, clientFrom(t, "127.0.0.2", srv.Addr()), 20); got != 20 {
		t.Errorf("%d of 20 honest requests were stored", got)
	}
}

// The address itself is served again when the calls have reached their deadline.
func TestCallsWithoutABodyEnd(t *testing.T) {
	cfg := testConfig()
	cfg.BodyTimeout = time.Second
	srv := start(t, cfg, accept, rpc.Options{})
	for range 11 {
		a := attack(t, "127.0.0.9", srv.Addr())
		for range 100 {
			a.call(export)
		}
	}
	same := clientFrom(t, "127.0.0.9", srv.Addr())
	wait.Until(t, "an honest request of the same address is stored", func() bool {
		_, err := same.Export(t.Context(), otlptest.Sized(20_000))
		return err == nil
	})
	if got := accepted(t, same, 20); got != 20 {
		t.Errorf("%d of 20 honest requests were stored", got)
	}
}

func TestABodyHasADeadline(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := testConfig()
	cfg.BodyTimeout = time.Second // enough for the body of an honest request
	consumer := consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		select {
		case <-ctx.Done():
		case <-time.After(cfg.BodyTimeout * 3 / 2): // the deadline is not for consuming
		}
		return signal.Result{}, ctx.Err()
	})
	srv := start(t, cfg, consumer, rpc.Options{Registerer: reg, Services: []func(grpc.ServiceRegistrar){registerControl}})
	a := attack(t, "127.0.0.9", srv.Addr())
	a.call(export)
	a.data(a.call(export), 100, []byte{0, 0, 0, 1, 0, 1, 2, 3})
	a.data(a.call("/grpc.health.v1.Health/Check"), 100, []byte{0, 0})
	wait.Until(t, "the calls are ended", func() bool { return prom.Value(t, reg, "metaflow_grpc_late_requests_total") == 3 })
	wait.Until(t, "they count no longer", func() bool { return prom.Value(t, reg, "metaflow_gateway_requests_in_flight") == 0 })

	stream, err := dial(t, srv.Addr()).NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, export)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&coltracepb.ExportTraceServiceResponse{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call without a body ends with %v, want DEADLINE_EXCEEDED", err)
	}
	if _, err := client(t, srv).Export(t.Context(), otlptest.Sized(100)); err != nil {
		t.Errorf("a request that takes long to store: %v", err)
	}
}

// A message in frames of one byte costs gRPC dozens of bytes for each.
func TestTinyFramesEndTheConnection(t *testing.T) {
	reg := prometheus.NewRegistry()
	srv := start(t, testConfig(), accept, rpc.Options{Registerer: reg})
	message := make([]byte, 1<<20)
	binary.BigEndian.PutUint32(message[1:], 1<<20)
	a := attack(t, "127.0.0.9", srv.Addr())
	if a.data(a.call(export), 1, message) {
		t.Error("a message in frames of one byte was taken")
	}
	if err := a.hungUp(); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection ended with %v", err)
	}
	if got := prom.Value(t, reg, "metaflow_grpc_tiny_frames_total"); got != 1 {
		t.Errorf("counted %v", got)
	}
}

// A client opens streams and resets them at once, which the bound of concurrent streams
// does not stop. Its connection is closed, whatever it opens, and others are served.
func TestRapidResetsEndTheConnection(t *testing.T) {
	for name, method := range map[string]string{"exports": export, "health checks": "/grpc.health.v1.Health/Check", "no method": "/none/None"} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			srv := start(t, testConfig(), accept, rpc.Options{Registerer: reg})
			a := attack(t, "127.0.0.9", srv.Addr())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = a.hungUp() // however it was closed
			}()
			opened := 0
			for deadline := time.After(wait.Patience); ; opened++ {
				a.write(frame(0x3, 0, a.call(method), []byte{0, 0, 0, 8}))
				select {
				case <-ended:
					if got := prom.Value(t, reg, "metaflow_grpc_reset_floods_total"); got != 1 {
						t.Errorf("the connection ended after %d streams, counted %v", opened, got)
					}
					if opened < 1000 {
						t.Errorf("the connection ended after %d streams, which a client may reset", opened)
					}
					if n := accepted(t, clientFrom(t, "127.0.0.8", srv.Addr()), 3); n != 3 {
						t.Errorf("%d of 3 requests of another client were stored", n)
					}
					wait.Until(t, "nothing is in flight", func() bool {
						bytes, requests := srv.Budget().InFlight()
						return bytes == 0 && requests == 0
					})
					return
				case <-deadline:
					t.Fatalf("%d streams were reset, and the connection is open", opened)
				default:
				}
			}
		})
	}
}

// A client that is refused resets the streams whose messages it has not sent: its connection
// stays, however often that happens.
func TestRefusedCallsMayBeReset(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestsInFlight = 1
	reg := prometheus.NewRegistry()
	var once sync.Once
	entered, release := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	srv := start(t, cfg, consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		once.Do(func() { close(entered) })
		<-release
		return signal.Result{}, nil
	}), rpc.Options{Registerer: reg})
	full := make(chan error, 1)
	t.Cleanup(free)
	go func() {
		_, err := clientFrom(t, "127.0.0.8", srv.Addr()).Export(context.WithoutCancel(t.Context()), otlptest.Sized(2000))
		full <- err
	}()
	<-entered
	const resets = 3000 // of which the server would forgive some 1,000
	a := attack(t, "127.0.0.9", srv.Addr())
	ended := make(chan error, 1)
	go func() { ended <- a.hungUp() }()
	for range resets {
		a.write(frame(0x3, 0, a.call(export), []byte{0, 0, 0, 8}))
	}
	wait.Until(t, "all calls were refused", func() bool {
		return prom.Value(t, reg, "metaflow_gateway_refused_requests_total") >= resets
	})
	select {
	case err := <-ended:
		t.Errorf("the connection ended: %v", err)
	default:
	}
	free()
	if err := <-full; err != nil {
		t.Error(err)
	}
	if got := prom.Value(t, reg, "metaflow_grpc_reset_floods_total"); got != 0 {
		t.Errorf("counted %v floods", got)
	}
}

// A request that does not fit once its length is known is refused as one that never fitted.
func TestARequestRefusedOnItsWayIsToComeBack(t *testing.T) {
	cfg := testConfig()
	cfg.MaxBytesInFlight, cfg.MaxRequestBytes = 8<<20, 8<<20
	entered, release := make(chan struct{}), make(chan struct{})
	srv := start(t, cfg, consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		entered <- struct{}{}
		<-release
		return signal.Result{}, nil
	}), rpc.Options{})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free) // the server waits for it when it stops
	first := make(chan error, 1)
	go func() {
		_, err := clientFrom(t, "127.0.0.2", srv.Addr()).Export(t.Context(), otlptest.Sized(5<<20))
		first <- err
	}()
	<-entered
	for range 20 {
		_, err := clientFrom(t, "127.0.0.3", srv.Addr()).Export(t.Context(), otlptest.Sized(7<<20))
		if _, ok := retryDelay(err); !ok || status.Code(err) != codes.Unavailable {
			t.Fatalf("Export = %v, want UNAVAILABLE with RetryInfo", err)
		}
	}
	free()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestASecondMessageIsRefused(t *testing.T) {
	stream, err := dial(t, start(t, testConfig(), accept, rpc.Options{}).Addr()).NewStream(
		t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, export)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_ = stream.SendMsg(otlptest.Sized(100)) // the answer says whether it was taken
	}
	if err := stream.RecvMsg(&coltracepb.ExportTraceServiceResponse{}); status.Code(err) == codes.OK {
		t.Error("two messages in one call were taken")
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := testConfig()
	cfg.MaxConnections, cfg.MaxConnectionsPerPeer = 5, 3
	srv := start(t, cfg, accept, rpc.Options{Registerer: reg})
	for range 3 {
		attack(t, "127.0.0.9", srv.Addr())
	}
	wait.Until(t, "they are open", func() bool { return prom.Value(t, reg, "metaflow_grpc_connections") == 3 })
	_ = attack(t, "127.0.0.9", srv.Addr()).hungUp()
	attack(t, "127.0.0.8", srv.Addr())
	last := attack(t, "127.0.0.7", srv.Addr())
	wait.Until(t, "they are open", func() bool { return prom.Value(t, reg, "metaflow_grpc_connections") == 5 })
	_ = attack(t, "127.0.0.6", srv.Addr()).hungUp()
	for _, bound := range []string{"connections", "peer_connections"} {
		if got := prom.Value(t, reg, "metaflow_grpc_refused_connections_total", bound); got != 1 {
			t.Errorf("%v connections refused for %s, want 1", got, bound)
		}
	}
	last.Close()
	wait.Until(t, "one is closed", func() bool { return prom.Value(t, reg, "metaflow_grpc_connections") == 4 })
	if got := accepted(t, clientFrom(t, "127.0.0.6", srv.Addr()), 1); got != 1 {
		t.Error("a connection is refused after another one was closed")
	}
}

package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
)

// fakeServers accepts requests, rejects them, or stores them and loses the
// acknowledgement.
type fakeServers struct {
	mu      sync.Mutex
	random  *rand.Rand
	trouble float64 // share of failing calls
	away    bool
	refuse  error                                    // the reply to every request
	answer  func(body []byte) (signal.Result, error) // if set, replies to each request
	refused int                                      // number of rejections
	stored  map[string][]bool                        // resend mark of each delivery, by body
	// received is the receipt time of the first attempt, by body; all attempts
	// must have the same.
	received map[string]time.Time
	differ   bool
}

func (s *fakeServers) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.away
}

func (s *fakeServers) WaitReady(ctx context.Context) error {
	for !s.Ready() {
		if err := retry.Sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *fakeServers) Export(_ context.Context, _ *signal.Signal, body []byte, opts upstream.ExportOptions) (signal.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		s.refused++
		return signal.Result{}, s.refuse
	}
	if s.answer != nil {
		res, err := s.answer(body)
		if err == nil {
			s.stored[string(body)] = append(s.stored[string(body)], opts.Resend)
		}
		return res, err
	}
	if first, ok := s.received[string(body)]; !ok {
		s.received[string(body)] = opts.Received
	} else if opts.Received.IsZero() || !first.Equal(opts.Received) {
		s.differ = true
	}
	fails := s.random.Float64() < s.trouble
	if !fails || s.random.Float64() < 0.5 {
		s.stored[string(body)] = append(s.stored[string(body)], opts.Resend)
	}
	if fails { // upstream does not know this error, so the outcome is unknown
		return signal.Result{}, errors.New("connection reset by peer")
	}
	return signal.Result{}, nil
}

func (s *fakeServers) set(trouble float64, away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble, s.away = trouble, away
}

// rig is a forwarder with fake servers and a real spool.
type rig struct {
	*forwarder
	servers *fakeServers
	disk    *spool.Spool
	dir     string
	parking Parking
}

// parked returns the number of parked requests.
func (r *rig) parked(t *testing.T) int {
	t.Helper()
	n, _, err := r.parking.Folder.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newRig(t *testing.T, maxBytes int64) *rig {
	t.Helper()
	r := &rig{servers: &fakeServers{random: rand.New(rand.NewPCG(1, 2)), stored: map[string][]bool{}, received: map[string]time.Time{}}, dir: t.TempDir()}
	var err error
	if r.disk, err = spool.Open(spool.Config{Dir: r.dir, MaxBytes: maxBytes}, spool.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.disk.Close() })
	if r.parking.Folder, err = parked.Open(filepath.Join(r.dir, "parked"), 1<<20); err != nil {
		t.Fatal(err)
	}
	codec, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(codec.close)
	r.forwarder = &forwarder{pipe: &pipe{
		signal: traces.Signal, foreign: true, up: r.servers, spool: r.disk, codec: codec,
		log: slog.New(slog.DiscardHandler), metrics: newPipeMetrics(nil, traces.Signal), liveTime: time.Second,
	}}
	r.configure(agentconfig.Default())
	return r
}

func (r *rig) configure(cfg agentconfig.Config) {
	name := "default"
	r.config.Store(&cfg)
	r.group.Store(&name)
}

func requestOf(body []byte, peer netip.Addr) signal.Request {
	return signal.Request{Body: body, Peer: netip.AddrPortFrom(peer, 40000)}
}

var sender = netip.MustParseAddr("10.1.2.3")

// Whatever the servers do, acknowledged requests reach them, and a request that
// reaches them again is marked as resent.
func TestAcknowledgedReachesTheServers(t *testing.T) {
	r := newRig(t, 64<<20)
	d := newDrainer(r.pipe, r.parking)
	d.holdFailed, d.holdTick, d.parkedInterval, d.parkAfter = time.Millisecond, time.Millisecond, time.Millisecond, 100*time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	drained := make(chan error, 1)
	go func() { drained <- d.run(ctx) }()

	var mu sync.Mutex
	var acknowledged []string
	var g errgroup.Group
	for worker := range 4 {
		gen := otlptest.New(uint64(worker), otlptest.Options{Start: time.Now()})
		g.Go(func() error {
			for i := range 50 {
				r.servers.set(float64(i%10)/10, i%7 == 0)
				body := gen.RequestBytes(3)
				if _, err := r.Consume(ctx, requestOf(body, sender)); err != nil {
					return err
				}
				mu.Lock()
				acknowledged = append(acknowledged, string(body))
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	r.servers.set(0, false)
	for r.disk.Len() > 0 || r.parked(t) > 0 {
		if err := retry.Sleep(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	for _, body := range acknowledged {
		deliveries := r.servers.stored[body]
		if len(deliveries) == 0 {
			t.Fatal("an acknowledged request reached no server")
		}
		for _, resend := range deliveries[1:] {
			if !resend {
				t.Fatal("a request reached the servers again without the resend mark")
			}
		}
	}
	if r.servers.differ {
		t.Error("two attempts of one request have different receipt times")
	}
	if len(acknowledged) != 200 {
		t.Errorf("%d requests acknowledged, want 200", len(acknowledged))
	}
}

// With a full spool and no server the sender gets a retry delay.
func TestFullSpoolAsksToRetry(t *testing.T) {
	r := newRig(t, 1<<20)
	r.servers.set(0, true)
	gen := otlptest.New(1, otlptest.Options{Start: time.Now()})
	var err error
	for range 10_000 {
		if _, err = r.Consume(t.Context(), requestOf(gen.RequestBytes(100), sender)); err != nil {
			break
		}
	}
	var busy interface{ RetryAfter() time.Duration }
	if !errors.As(err, &busy) || busy.RetryAfter() <= 0 || fault.ClassOf(err) != fault.Overload {
		t.Errorf("consume = %v", err)
	}
}

// A request that the server rejects permanently is rejected, not spooled.
func TestPermanentRejection(t *testing.T) {
	r := newRig(t, 1<<20)
	r.servers.refuse = fault.As(fault.Rejected, errors.New("no"))
	_, err := r.Consume(t.Context(), requestOf(otlptest.New(1, otlptest.Options{Start: time.Now()}).RequestBytes(1), sender))
	if fault.ClassOf(err) != fault.Rejected || r.disk.Len() != 0 {
		t.Errorf("consume = %v, %d in the spool", err, r.disk.Len())
	}
}

// A sender on this host gets the host's address.
func TestLoopbackSenderGetsHostAddress(t *testing.T) {
	r := newRig(t, 1<<20)
	if got := r.addressOf(netip.MustParseAddr("127.0.0.1")).String(); got != "127.0.0.1" {
		t.Errorf("unknown host: %s", got)
	}
	r.host = netip.MustParseAddr("10.9.9.9")
	for peer, want := range map[string]string{"127.0.0.1": "10.9.9.9", "::1": "10.9.9.9", "::ffff:127.0.0.2": "10.9.9.9", "10.1.2.3": "10.1.2.3", "::ffff:10.1.2.3": "10.1.2.3"} {
		if got := r.addressOf(netip.MustParseAddr(peer)).String(); got != want {
			t.Errorf("%s: %s, want %s", peer, got, want)
		}
	}
	if got := outboundAddress("127.0.0.1:1"); got.String() != "127.0.0.1" {
		t.Errorf("address of the route over loopback: %s", got)
	}
}

// A text that is not UTF-8 is repaired on its way, so that servers of any
// version accept the request.
func TestBadTextIsRepaired(t *testing.T) {
	r := newRig(t, 1<<20)
	body := append(otlptest.New(1, otlptest.Options{}).RequestBytes(3), 0x0a, 3, 0x1a, 1, 0xff)
	if _, err := r.Consume(t.Context(), signal.Request{Body: body}); err != nil {
		t.Fatal(err)
	}
	for stored := range r.servers.stored {
		if err := traces.Signal.Check([]byte(stored)); err != nil || traces.Signal.Count([]byte(stored)) != 3 {
			t.Errorf("forwarded %d spans, %v", traces.Signal.Count([]byte(stored)), err)
		}
	}
	if len(r.servers.stored) != 1 {
		t.Errorf("%d requests reached the servers", len(r.servers.stored))
	}
}

func TestMalformedRequestIsRejected(t *testing.T) {
	r := newRig(t, 1<<20)
	if _, err := r.Consume(t.Context(), requestOf([]byte("garbage"), sender)); fault.ClassOf(err) != fault.Rejected {
		t.Errorf("consume = %v", err)
	}
}

func TestDisabledTracesAreRejectedWithGroup(t *testing.T) {
	r := newRig(t, 1<<20)
	cfg := agentconfig.Default()
	cfg.Integration.FeatureControl.TraceIntegrationDisabled = true
	r.configure(cfg)
	_, err := r.Consume(t.Context(), requestOf(nil, sender))
	if fault.ClassOf(err) != fault.Rejected || !strings.Contains(err.Error(), `"default"`) {
		t.Errorf("consume = %v", err)
	}
}

func BenchmarkPack(b *testing.B) {
	codec, err := newCodec()
	if err != nil {
		b.Fatal(err)
	}
	defer codec.close()
	body := otlptest.New(1, otlptest.Options{Start: time.Now()}).RequestBytes(512)
	b.SetBytes(int64(len(body)))
	var packed []byte
	for b.Loop() {
		packed = codec.pack(body)
	}
	b.ReportMetric(float64(len(body))/float64(len(packed)), "ratio")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/span")
}

// The begin and the end of spooling are logged once, with the cause and the
// counts. A server that takes some requests and refuses others has not ended it.
func TestSpoolingIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 64<<20)
		var log output.Buffer
		r.log = slog.New(slog.NewTextHandler(&log, nil))
		gen := otlptest.New(1, otlptest.Options{Start: time.Now()})
		send := func() {
			if _, err := r.Consume(t.Context(), requestOf(gen.RequestBytes(3), sender)); err != nil {
				t.Fatal(err)
			}
		}
		send()
		for range 3 {
			r.servers.set(0, true)
			send()
			r.servers.set(0, false)
			send()
		}
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `msg="spooling requests to disk" signal=traces cause="no server is connected"`) {
			t.Errorf("log while servers come and go:\n%s", text)
		}
		time.Sleep(settled) //nolint:forbidigo // the clock of the bubble
		send()
		send()
		if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "servers take requests again") || !strings.Contains(text, "spooled=9 requests_in_spool=3") {
			t.Errorf("log after the end:\n%s", text)
		}
	})
}

package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// site is a broker and a ClickHouse that tests can stop, and a configuration
// for servers over them.
type site struct {
	t          *testing.T
	dir        string
	config     string
	kafka      *broker.Broker
	kafkaAddr  string
	engine     *chengine.Engine
	endEngine  func() error
	nativePort int
	grpc       string
}

func newSite(t *testing.T, extra string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), kafkaAddr: ports.FreeAddress(t), grpc: ports.FreeAddress(t)}
	s.startKafka()
	s.startEngine()
	t.Cleanup(func() {
		s.stopKafka()
		s.stopEngine()
	})
	s.config = filepath.Join(s.dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q, retry_delay: 200ms}
kafka: {brokers: [%q], partitions: 6, produce_timeout: 3s}
clickhouse: {addresses: ["127.0.0.1:%d"], query_timeout: 10s}
writer: {max_batch_wait: 200ms, session_timeout: 6s}
flow_writer: {max_batch_wait: 200ms, session_timeout: 6s}
log: {format: text}
%s`, s.grpc, s.kafkaAddr, s.nativePort, extra)
	if err := os.WriteFile(s.config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) startKafka() {
	s.t.Helper()
	var err error
	s.kafka, err = broker.Start(broker.Options{Listen: s.kafkaAddr, DataDir: filepath.Join(s.dir, "kafka")})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) stopKafka() {
	if s.kafka != nil {
		_ = s.kafka.Close()
		s.kafka = nil
	}
}

// startEngine starts ClickHouse and restarts it whenever it ends by itself: a
// program killed in the middle of an INSERT takes the embedded engine down.
func (s *site) startEngine() {
	s.t.Helper()
	opts := chengine.Options{DataDir: filepath.Join(s.dir, "clickhouse"), NativePort: s.nativePort}
	var err error
	if s.engine, err = chengine.Start(s.t.Context(), opts); err != nil {
		s.t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(s.engine.NativeAddr())
	if err != nil {
		s.t.Fatal(err)
	}
	s.nativePort, _ = strconv.Atoi(port)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func(e *chengine.Engine) { ended <- chengine.Keep(ctx, e, opts) }(s.engine)
	s.endEngine = func() error {
		stop()
		return <-ended
	}
}

func (s *site) stopEngine() {
	if s.engine == nil {
		return
	}
	if err := s.endEngine(); err != nil {
		s.t.Error(err)
	}
	s.engine = nil
}

// serve starts a server with these roles and returns it with its HTTP address.
func (s *site) serve(roles string) (*process, string) {
	s.t.Helper()
	addr := ports.FreeAddress(s.t)
	return start(s.t, "serve", "--config", s.config, "--roles", roles, "--http-listen", addr), addr
}

// serveReady is serve, and waits until the server is ready.
func (s *site) serveReady(roles string) (*process, string) {
	s.t.Helper()
	p, addr := s.serve(roles)
	ready(p, addr)
	return p, addr
}

// ready waits until the server reports that it is ready.
func ready(p *process, addr string) {
	p.t.Helper()
	p.eventually(time.Minute, func() error {
		code, body, err := get("http://" + addr + "/ready")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("not ready: %s", body)
		}
		return err
	})
}

// Writers die at any moment and others take over; gateways die and clients
// retry. In the end every acknowledged span is stored exactly once.
func TestRepeatedKills(t *testing.T) {
	s := newSite(t, "")
	gateway, _ := s.serve("gateway")
	writer, _ := s.serveReady("writer")

	c := newClient(t, s.grpc, 1)
	var sending sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sending.Go(func() {
		for range 400 {
			c.send(ctx, 40)
			time.Sleep(50 * time.Millisecond) //nolint:forbidigo // spreads the load over the kills
		}
	})
	for i := range 3 {
		next, _ := s.serve("writer")
		// The embedded broker never removes a member that dies while it waits
		// to join, as Kafka does. So kill only members.
		next.eventually(time.Minute, assigned(next))
		if i == 1 {
			gateway.kill()
			gateway, _ = s.serve("gateway")
		}
		writer.kill()
		writer = next
	}
	sending.Wait()
	t.Logf("%d spans acknowledged, %d requests sent more than once", c.sent, c.again)
	writer.eventually(2*time.Minute, exactly(open(t, s.engine.NativeAddr()), c.sent))
	for _, p := range []*process{gateway, writer} {
		if code := p.terminate(); code != 0 {
			t.Errorf("exit status %d after SIGTERM", code)
		}
	}
}

// assigned returns nil once a writer owns partitions.
func assigned(p *process) func() error {
	return func() error {
		if !strings.Contains(p.output.String(), "partition taken over") {
			return fmt.Errorf("no partition assigned")
		}
		return nil
	}
}

func TestClickHouseDown(t *testing.T) {
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	c := newClient(t, s.grpc, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c.send(ctx, 100)
	s.stopEngine()
	for range 20 {
		c.send(ctx, 100) // still works: Kafka keeps it
	}
	server.eventually(time.Minute, func() error {
		code, body, err := get("http://" + addr + "/ready")
		if err != nil {
			return err
		}
		if code != http.StatusServiceUnavailable || !strings.Contains(body, "clickhouse") {
			return fmt.Errorf("/ready returned %d %s", code, body)
		}
		return nil
	})
	s.startEngine()
	server.eventually(time.Minute, exactly(open(t, s.engine.NativeAddr()), c.sent))
	ready(server, addr)
}

// While Kafka is down, a client is asked at once to retry, with a delay;
// acknowledged spans are stored.
func TestKafkaDown(t *testing.T) {
	s := newSite(t, "")
	server, _ := s.serveReady("gateway,writer")
	c := newClient(t, s.grpc, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c.send(ctx, 100)
	s.stopKafka()
	_, err := c.trace.Export(ctx, &coltracepb.ExportTraceServiceRequest{ResourceSpans: c.gen.Request(10).GetResourceSpans()})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("export without Kafka: %v", err)
	}
	if !hasRetryInfo(err) {
		t.Errorf("the reply has no retry delay: %v", err)
	}
	s.startKafka()
	for range 5 {
		c.send(ctx, 100)
	}
	// The ten unacknowledged spans may or may not have arrived.
	server.eventually(time.Minute, func() error {
		rows, ids, err := stored(open(t, s.engine.NativeAddr()))
		if err == nil && (rows != ids || rows < uint64(c.sent) || rows > uint64(c.sent)+10) {
			err = fmt.Errorf("%d rows with %d ids stored, %d acknowledged", rows, ids, c.sent)
		}
		return err
	})
}

func hasRetryInfo(err error) bool {
	delay, _ := otlptest.RetryDelay(err)
	return delay > 0
}

// A server starts before its engines, waits for them, reports what it waits
// for, and stops cleanly while it waits.
func TestServerWaitsForItsEngines(t *testing.T) {
	s := newSite(t, "")
	s.stopKafka()
	s.stopEngine()
	server, addr := s.serve("gateway,writer,control")
	server.eventually(time.Minute, func() error {
		code, body, err := get("http://" + addr + "/ready")
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(body, "kafka") || !strings.Contains(body, "clickhouse")) {
			err = fmt.Errorf("/ready returned %d %s", code, body)
		}
		return err
	})
	impatient, _ := s.serve("writer")
	impatient.eventually(time.Minute, func() error {
		if !strings.Contains(impatient.output.String(), "retrying") {
			return fmt.Errorf("the log does not show that it waits: %s", impatient.output.String())
		}
		return nil
	})
	if code := impatient.terminate(); code != 0 {
		t.Errorf("exit status %d when stopped while waiting", code)
	}
	s.startKafka()
	s.startEngine()
	ready(server, addr)
}

// Without automatic migration, a writer waits for the schema.
func TestMigrateByHand(t *testing.T) {
	s := newSite(t, "migrate_at_start: false\n")
	server, addr := s.serve("writer")
	server.eventually(time.Minute, func() error {
		_, body, err := get("http://" + addr + "/ready")
		if err == nil && !strings.Contains(body, "migrate up") {
			err = fmt.Errorf("/ready returned %s", body)
		}
		return err
	})
	for _, step := range []struct {
		args string
		code int
		says string
	}{
		{"status", 1, "migrate up"},
		{"check", 0, "TO DO    schema: the database metaflow is without MetaFlow's tables; run 'metaflow-server migrate up'\n"},
		{"up", 0, "version"},
		{"up", 0, "version"},
		{"check", 0, "no problem found"},
		{"status", 0, "0001"},
		{"down", 2, "--yes"},
	} {
		p := start(t, "migrate", step.args, "--config", s.config)
		<-p.done
		if code := p.cmd.ProcessState.ExitCode(); code != step.code || !strings.Contains(p.output.String(), step.says) {
			t.Errorf("migrate %s: exit status %d, want %d, and %q in:\n%s", step.args, code, step.code, step.says, p.output.String())
		}
	}
	ready(server, addr)
}

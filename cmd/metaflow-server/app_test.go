package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// serving is an app that runs until the test ends.
type serving struct {
	*app

	grpc net.Addr
	otlp net.Addr     // of OTLP/HTTP, nil if disabled
	stop func() error // stops it and returns its result
	wait func() error // waits for its result
}

// serve runs an app with these roles over the Kafka at addr.
func serve(t *testing.T, kafka string, edit func(*server)) *serving {
	t.Helper()
	return serveLogging(t, kafka, slog.New(slog.NewTextHandler(t.Output(), nil)), edit)
}

// serveLogging is serve with a log.
func serveLogging(t *testing.T, kafka string, log *slog.Logger, edit func(*server)) *serving {
	t.Helper()
	cfg := defaultServer()
	cfg.GRPC.Listen, cfg.HTTP.Listen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Query.HTTPListen, cfg.Query.GRPCListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Kafka.Brokers, cfg.Kafka.Replication = []string{kafka}, 1
	edit(cfg)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	a, err := newApp(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	listening := make(chan [2]net.Addr, 1)
	a.listening = func(grpc, otlpHTTP net.Addr) { listening <- [2]net.Addr{grpc, otlpHTTP} }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	s := &serving{app: a}
	s.wait = sync.OnceValue(func() error { return <-ended })
	s.stop = func() error {
		cancel()
		return s.wait()
	}
	t.Cleanup(func() { _ = s.stop() })
	select {
	case addrs := <-listening:
		s.grpc, s.otlp = addrs[0], addrs[1]
	case <-time.After(wait.Patience):
		t.Fatal("the server does not listen")
	}
	return s
}

func (s *serving) client(t *testing.T, token string) *api.Client {
	t.Helper()
	c := api.NewClient(api.ClientOptions{BaseURL: "http://" + s.http.Addr().String(), Token: token})
	t.Cleanup(c.Close)
	return c
}

func (s *serving) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.grpc.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Two servers with only the role control: operators and agents may use either, the token
// is required, and traces are refused.
func TestControlAlone(t *testing.T) {
	kafka := kafkatest.Start(t, broker.Options{}).Addr()
	only := func(s *server) { s.Roles, s.Control.Token = []string{roleControl}, "hush" }
	first, second := serve(t, kafka, only), serve(t, kafka, only)

	stream, err := agentv1.NewControlServiceClient(first.dial(t)).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: &agentv1.Registration{
		AgentId: "a1", InstanceId: "i1", Name: "node-1",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	configuration := func() *agentv1.Configuration {
		t.Helper()
		m, err := stream.Recv()
		if err != nil || m.GetConfiguration() == nil {
			t.Fatalf("no configuration but %v, %v", m, err)
		}
		return m.GetConfiguration()
	}
	if c := configuration(); c.GroupName != "default" {
		t.Errorf("the first configuration is %v", c)
	}
	text := []byte("external_agent_http_proxy_enabled: 1\n")
	if _, err := second.client(t, "hush").UpdateConfiguration(t.Context(), "default", text, api.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if c := configuration(); !strings.Contains(c.Yaml, "enabled: true") {
		t.Errorf("the second configuration is %v", c)
	}
	// The other replica learns the agent's status a moment later.
	var agents []api.Agent
	wait.Until(t, "the other replica knows the agent", func() bool {
		if agents, err = second.client(t, "hush").Agents(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(agents) > 0
	})
	if len(agents) != 1 || !strings.HasSuffix(agents[0].Replica, first.http.Addr().String()[strings.LastIndex(first.http.Addr().String(), ":"):]) {
		t.Errorf("agents %+v, %v", agents, err)
	}
	var problem *api.Problem
	if _, err := first.client(t, "").Groups(t.Context()); !errors.As(err, &problem) || problem.Code != api.CodeUnauthorized {
		t.Errorf("without the token: %v", err)
	}
	_, err = coltracepb.NewTraceServiceClient(first.dial(t)).Export(t.Context(), &coltracepb.ExportTraceServiceRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("traces: %v", err)
	}
	if code, body := get(t, first, "/ready"); code != http.StatusOK || !strings.Contains(body, `"control","ok":true`) {
		t.Errorf("/ready is %d %s", code, body)
	}
	if code, body := get(t, first, "/metrics"); code != http.StatusOK || !strings.Contains(body, "metaflow_control_streams 1") {
		t.Errorf("/metrics is %d without the stream", code)
	}
	if err := errors.Join(first.stop(), second.stop()); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// A gateway without control has no /v1/ and no agent streams.
func TestGatewayAlone(t *testing.T) {
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) { s.Roles = []string{roleGateway} })
	if _, err := coltracepb.NewTraceServiceClient(s.dial(t)).Export(t.Context(), &coltracepb.ExportTraceServiceRequest{}); err != nil {
		t.Errorf("traces: %v", err)
	}
	stream, err := agentv1.NewControlServiceClient(s.dial(t)).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("a stream of an agent: %v", err)
	}
	if code, _ := get(t, s, "/v1/agents"); code != http.StatusNotFound {
		t.Errorf("/v1/agents is %d", code)
	}
}

// OTLP/HTTP works like OTLP/gRPC: it counts, rejects and refuses the same spans within
// the same bounds, and web pages of configured origins may send.
func TestGatewayOverHTTP(t *testing.T) {
	origin, err := cors.ParseOrigin("https://*.example.com")
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) {
		s.Roles, s.Gateway.HTTPListen, s.GRPC.MaxRequestBytes = []string{roleGateway}, "127.0.0.1:0", 1<<20
		s.Gateway.HTTPCORS.AllowedOrigins = []cors.Origin{origin}
	})
	now := strconv.FormatInt(time.Now().UnixNano(), 10)
	const good, bad = `"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7"`, `"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"0000000000000000"`
	request := func(ids ...string) string {
		var spans []string
		for _, id := range ids {
			spans = append(spans, fmt.Sprintf(`{%s,"name":"a","startTimeUnixNano":%q,"endTimeUnixNano":%q}`, id, now, now))
		}
		return `{"resourceSpans":[{"scopeSpans":[{"spans":[` + strings.Join(spans, ",") + `]}]}]}`
	}
	for name, tc := range map[string]struct {
		path, body string
		want       int
		words      string
	}{
		"a span":        {"/v1/traces", request(good), http.StatusOK, "{}"},
		"a bad one":     {"//v1/traces/", request(good, bad), http.StatusOK, `"rejectedSpans":"1"`},
		"no OTLP":       {"/v1/traces", "garbage", http.StatusBadRequest, "read JSON"},
		"too large":     {"/v1/traces", strings.Repeat(" ", 1<<20+1), http.StatusRequestEntityTooLarge, "the limit is 1048576 bytes"},
		"another path":  {"/v1/logs", request(good), http.StatusNotFound, "send traces to"},
		"the REST path": {"/v1/agents", "", http.StatusNotFound, "is not served"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.otlp.String()+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Origin", "https://app.example.com")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != tc.want || !strings.Contains(string(text), tc.words) {
			t.Errorf("%s: %d %s, %v; want %d %s", name, res.StatusCode, text, err, tc.want, tc.words)
		}
		if got := res.Header.Get("Access-Control-Allow-Origin"); got != "https://app.example.com" {
			t.Errorf("%s: allowed origin %q", name, got)
		}
	}
	_, metrics := get(t, s, "/metrics")
	for _, line := range []string{
		"metaflow_gateway_spans_received_total 3", "metaflow_gateway_spans_produced_total 2", `metaflow_otlphttp_requests_total{code="200"} 2`,
		`metaflow_otlphttp_refused_requests_total{reason="path"} 2`, "metaflow_gateway_bytes_in_flight 0", "metaflow_otlphttp_bytes_in_flight 0",
	} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("/metrics lacks %q", line)
		}
	}
	if err := s.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// If the OTLP/HTTP port is in use, that is an error if the operator configured it and a
// warning if it is the default. Without the role gateway there is no such port.
func TestTakenPortOfOTLPHTTP(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	kafka := kafkatest.Start(t, broker.Options{}).Addr()
	cfg := defaultServer()
	cfg.GRPC.Listen, cfg.HTTP.Listen, cfg.Gateway.HTTPListen = "127.0.0.1:0", "127.0.0.1:0", taken.Addr().String()
	cfg.Roles, cfg.Kafka.Brokers, cfg.Kafka.Replication = []string{roleGateway}, []string{kafka}, 1
	for name, spare := range map[string]string{"asked for": "", "spare": taken.Addr().String()} {
		a, err := newApp(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a.spareHTTP = spare
		a.listening = func(_, otlpHTTP net.Addr) {
			if otlpHTTP != nil {
				t.Errorf("%s: it listens on %s", name, otlpHTTP)
			}
			cancel()
		}
		if err := a.run(ctx); (err == nil) != (spare != "") || err != nil && !strings.Contains(err.Error(), "gateway.http_listen: listen for otlp http") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := serve(t, kafka, func(s *server) { s.Roles, s.Gateway.HTTPListen = []string{roleControl}, taken.Addr().String() })
	if s.otlp != nil {
		t.Errorf("control listens for OTLP/HTTP on %s", s.otlp)
	}
}

// A server with the port accepts reports of pods and services from registered agents, and
// every replica learns them; so does a gateway, at which agents do not register.
func TestReports(t *testing.T) {
	kafka := kafkatest.Start(t, broker.Options{}).Addr()
	gateway := serve(t, kafka, func(s *server) { s.Roles = []string{roleGateway} })
	control := serve(t, kafka, func(s *server) { s.Roles = []string{roleControl} })
	if err := join(t.Context(), control.dial(t), "a1", "1"); err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.1.2.3")
	now := uint64(time.Now().UnixNano())
	for i, s := range []*serving{gateway, control} {
		request := &agentv1.ReportRequest{
			AgentId: "a1", Cluster: "prod", Node: "n1", TimeUnixNano: now,
			Pods: []*agentv1.Pod{{
				Uid: fmt.Sprint("u", i), Namespace: "shop", Name: fmt.Sprint("web-", i),
				Addresses: []*agentv1.PodAddress{{Address: address.AsSlice(), ValidFromUnixNano: now + uint64(i)}},
			}},
		}
		client := agentv1.NewResourceServiceClient(s.dial(t))
		wait.NoError(t, func() error { // the registration is in flight through Kafka
			_, err := client.Report(t.Context(), request, grpc.WaitForReady(true))
			return err
		})
		for _, replica := range []*serving{gateway, control} {
			want := fmt.Sprint("web-", i)
			wait.Until(t, "the record has come through Kafka", func() bool {
				return replica.know.resources.Resolve("prod", address, now+10).Name == want
			})
			if got := replica.know.resources.Resolve("prod", address, now+10); got.Name != want || got.Namespace != "shop" {
				t.Errorf("%v holds the address, want %s", got, want)
			}
		}
	}
	if code, body := get(t, gateway, "/ready"); code != http.StatusOK || !strings.Contains(body, `"resources","ok":true`) {
		t.Errorf("/ready is %d %s", code, body)
	}
}

// While Kafka is away the server waits, and tells probes and operators.
func TestControlWaitsForKafka(t *testing.T) {
	cfg := defaultServer()
	cfg.Roles, cfg.HTTP.Listen, cfg.Kafka.Brokers = []string{roleControl}, "127.0.0.1:0", []string{"127.0.0.1:1"}
	a, err := newApp(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	s := &serving{app: a}
	if code, body := get(t, s, "/ready?check=control"); code != http.StatusServiceUnavailable {
		t.Errorf("/ready is %d %s", code, body)
	}
	_, err = s.client(t, "").Agents(t.Context())
	var problem *api.Problem
	if !errors.As(err, &problem) || problem.Code != api.CodeUnavailable || !strings.Contains(problem.Message, "connection refused") {
		t.Errorf("agents: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// A server whose HTTP port fails exits, because nothing could monitor it.
func TestHTTPFailureEndsTheServer(t *testing.T) {
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) { s.Roles = []string{roleControl} })
	if err := s.http.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(); err == nil || !strings.Contains(err.Error(), "serve http") {
		t.Errorf("it ended with %v", err)
	}
}

func get(t *testing.T, s *serving, path string) (code int, body string) {
	t.Helper()
	return getFrom(t, s.http.Addr(), path, func(*http.Request) {})
}

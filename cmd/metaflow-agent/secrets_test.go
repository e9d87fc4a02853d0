package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// secretText stands in every secret of these tests.
const secretText = "hunter2"

// refusing is a server that configures agents and refuses their traces.
type refusing struct {
	agentv1.UnimplementedControlServiceServer
	coltracepb.UnimplementedTraceServiceServer

	port   int
	secret chan string // presented by an agent

	refused atomic.Int64 // requests
}

func (r *refusing) Connect(stream agentv1.ControlService_ConnectServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	for _, s := range md.Get(schema.MetadataSecret) {
		select {
		case r.secret <- s:
		default:
		}
	}
	err := stream.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Configuration{Configuration: &agentv1.Configuration{
		GroupId: "g-default000", GroupName: "default", Revision: 1,
		Yaml: "inputs: {flow: {enabled: false}, integration: {enabled: true, listen_port: " + strconv.Itoa(r.port) + "}}\n",
	}}})
	for err == nil {
		_, err = stream.Recv()
	}
	return err
}

func (r *refusing) Export(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	r.refused.Add(1)
	return nil, status.Error(codes.Unauthenticated, "the token is not known here")
}

// A running agent shows no secret in its configuration, its log, its metrics, /ready and
// the answers to senders: neither its tokens nor the secret that it has generated.
func TestAgentsShowNoSecrets(t *testing.T) {
	keys := 0
	for _, k := range config.Keys(defaults(), program.EnvPrefix) {
		if k.Secret {
			keys++
			t.Setenv(k.Env, secretText+"-"+k.Name)
		}
	}
	code, out, errOut := execute(t, "config", "print")
	if code != program.ExitOK || keys == 0 || strings.Contains(out+errOut, secretText) || strings.Count(out, "***") < keys {
		t.Errorf("config print of %d secrets: exit status %d\n%s%s", keys, code, out, errOut)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	service := &refusing{port: ports.Free(t), secret: make(chan string, 1)}
	server := grpc.NewServer()
	agentv1.RegisterControlServiceServer(server, service)
	coltracepb.RegisterTraceServiceServer(server, service)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	defer running.Wait()
	defer server.Stop()

	cfg := defaults()
	if err := config.Load(cfg, config.Options{EnvPrefix: program.EnvPrefix, OtherVariables: []string{"METAFLOW_TEST_", "METAFLOW_CHDB_LIBRARY"}}); err != nil {
		t.Fatal(err)
	}
	cfg.Server.Addresses, cfg.Server.MaxBackoff = []string{listener.Addr().String()}, 100*time.Millisecond
	cfg.Spool.Dir, cfg.HTTP.Listen, cfg.ID, cfg.Name = t.TempDir(), "127.0.0.1:0", "a", "n"
	cfg.Kubernetes.Enabled = "false"
	logged := new(output.Buffer)
	a, err := newApp(cfg, program.Log{Level: "debug", Format: "json"}.Logger(logged))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()

	t.Cleanup(func() {
		if t.Failed() {
			t.Log(logged)
		}
	})
	var seen strings.Builder
	ask := func(method, url, token, body string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/x-protobuf")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0 // not open yet
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(text)
		return resp.StatusCode
	}
	otlp := "http://127.0.0.1:" + strconv.Itoa(service.port) + "/v1/traces"
	wait.Until(t, "a wrong token is refused", func() bool { return ask(http.MethodPost, otlp, secretText, "") == http.StatusUnauthorized })
	if got := ask(http.MethodPost, otlp, secretText+"-otlp.bearer_tokens", "damaged"); got != http.StatusBadRequest {
		t.Errorf("a damaged request with the right token: %d", got)
	}
	ask(http.MethodPost, otlp, secretText+"-otlp.bearer_tokens", string(otlptest.New(1, otlptest.Options{}).RequestBytes(1)))
	wait.Until(t, "the server refuses the span", func() bool { return service.refused.Load() > 0 })
	for _, path := range []string{"/metrics", "/ready"} {
		ask(http.MethodGet, "http://"+a.http.Addr().String()+path, secretText, "")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !strings.Contains(logged.String(), "starting agent") {
		t.Errorf("the log is incomplete:\n%s", logged)
	}
	seen.WriteString(logged.String())
	own := <-service.secret
	for _, secret := range []string{secretText, own} {
		if text := seen.String(); len(secret) < len(secretText) || strings.Contains(text, secret) {
			t.Errorf("the secret %q is shown:\n%s", secret, text)
		}
	}
}

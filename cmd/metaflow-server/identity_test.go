package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// join registers an agent with the metadata in ctx and returns the error; the stream
// stays open until ctx ends.
func join(ctx context.Context, conn *grpc.ClientConn, id, instance string) error {
	stream, err := agentv1.NewControlServiceClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	err = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: &agentv1.Registration{
		AgentId: id, InstanceId: instance, Name: id, Cluster: "prod", StartTimeUnixNano: 1,
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // EOF: refused, and Recv has the cause
		return err
	}
	_, err = stream.Recv() // the configuration
	return err
}

func showing(ctx context.Context, pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

// An agent registers with a secret and leaves. No client without the secret may use its
// id, at any replica, until an operator has released it.
func TestIDIsKeptForItsAgent(t *testing.T) {
	kafka := kafkatest.Start(t, broker.Options{}).Addr()
	edit := func(s *server) { s.Roles = []string{roleGateway, roleControl} }
	one, two := serve(t, kafka, edit), serve(t, kafka, edit)
	owner, left := context.WithCancel(t.Context())
	if err := join(showing(owner, schema.MetadataAgent, "a", schema.MetadataSecret, "s"), one.dial(t), "a", "1"); err != nil {
		t.Fatal(err)
	}
	stranger := two.dial(t)
	spans := func(pairs ...string) error {
		_, err := coltracepb.NewTraceServiceClient(stranger).Export(showing(t.Context(), pairs...), &coltracepb.ExportTraceServiceRequest{})
		return err
	}
	wait.Until(t, "the other replica refuses another client's spans as the agent's", func() bool { return spans(schema.MetadataAgent, "a") != nil })
	left()
	refused := map[string]func() error{
		"spans":                  func() error { return spans(schema.MetadataAgent, "a") },
		"spans, another secret":  func() error { return spans(schema.MetadataAgent, "a", schema.MetadataSecret, "t") },
		"a stream":               func() error { return join(t.Context(), stranger, "a", "2") },
		"a stream of its start":  func() error { return join(t.Context(), stranger, "a", "1") },
		"a stream under another": func() error { return join(showing(t.Context(), schema.MetadataAgent, "b"), stranger, "a", "1") },
		"flows": func() error {
			_, err := agentv1.NewFlowServiceClient(stranger).ExportFlows(showing(t.Context(), schema.MetadataAgent, "a"), &agentv1.ExportFlowsRequest{AgentId: "a"})
			return err
		},
		"pods": func() error {
			_, err := agentv1.NewResourceServiceClient(stranger).Report(t.Context(), &agentv1.ReportRequest{AgentId: "a", Cluster: "c", TimeUnixNano: 1})
			return err
		},
	}
	for what, call := range refused {
		if err := call(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s of another client under the agent's id: %v, want PERMISSION_DENIED", what, err)
		}
	}
	if err := spans(schema.MetadataAgent, "a", schema.MetadataSecret, "s"); err != nil {
		t.Errorf("spans of the agent itself: %v", err)
	}
	if err := spans(); err != nil {
		t.Errorf("spans of a collector, which names no agent: %v", err)
	}
	back, leave := context.WithCancel(t.Context())
	if err := join(showing(back, schema.MetadataSecret, "s"), stranger, "a", "2"); err != nil {
		t.Errorf("the agent itself, after a restart: %v", err)
	}
	leave()
	wait.NoError(t, func() error {
		deleted := one.client(t, "").DeleteAgent(t.Context(), "a") // refused until the end of the stream is known
		err := join(showing(t.Context(), schema.MetadataSecret, "new"), stranger, "a", "3")
		if err != nil {
			err = fmt.Errorf("an agent with a new secret, after the id was released: %w", errors.Join(err, deleted))
		}
		return err
	})
}

func TestAgentsPresentTheToken(t *testing.T) {
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) {
		s.Roles, s.Control.AgentTokens = []string{roleControl}, []string{"former", "hush"}
	})
	conn := s.dial(t)
	for _, token := range []string{"", "x"} {
		if err := join(showing(t.Context(), schema.MetadataToken, token), conn, "a", "1"); status.Code(err) != codes.Unauthenticated {
			t.Errorf("with the token %q: %v, want UNAUTHENTICATED", token, err)
		}
	}
	for i, token := range []string{"former", "hush"} {
		if err := join(showing(t.Context(), schema.MetadataToken, token), conn, fmt.Sprint("a", i), "1"); err != nil {
			t.Errorf("with the token %q: %v", token, err)
		}
	}
}

// 599 registrations in a second leave room for others.
func TestFakeAgentsLeaveRoom(t *testing.T) {
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) {
		s.Roles, s.Control.MaxAgents, s.Control.NewAgentsPerMinute = []string{roleControl}, 600, 10_000
	})
	conn := s.dial(t)
	joined := 0
	for i := range 599 {
		ctx, leave := context.WithCancel(t.Context())
		err := join(ctx, conn, fmt.Sprint("fake-", i), "1")
		leave()
		switch status.Code(err) {
		case codes.OK:
			joined++
		case codes.ResourceExhausted:
			continue
		default:
			t.Fatal(err)
		}
		if joined%25 != 0 {
			continue
		}
		// Those that have left count once their last status was stored.
		wait.NoError(t, func() error {
			agents, err := s.client(t, "").Agents(t.Context())
			if err == nil && len(agents) < joined {
				err = fmt.Errorf("%d of %d agents are known", len(agents), joined)
			}
			return err
		})
	}
	if joined < 250 || joined > 350 {
		t.Errorf("one address filled %d of 600 places, want half", joined)
	}
}

// Two groups with tokens of their own, in a file: an agent joins only its token's group,
// whatever it calls the group. Removing the token ends its stream within seconds, and it
// cannot send spans any more; the other group's agent stays.
func TestGroupsAreKeptApart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("shop:s\nbank:b\n")
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) {
		s.Roles, s.Control.GroupTokensFile = []string{roleGateway, roleControl}, file
	})
	ids := map[string]string{}
	for _, name := range []string{"shop", "bank"} {
		g, err := s.client(t, "").CreateGroup(t.Context(), name, "")
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = g.ID
	}
	conn := s.dial(t)
	// connect registers an agent and returns its stream and its group.
	connect := func(token, id, group string) (agentv1.ControlService_ConnectClient, string, error) {
		stream, err := agentv1.NewControlServiceClient(conn).Connect(showing(t.Context(), schema.MetadataToken, token, schema.MetadataSecret, "secret of "+id))
		if err != nil {
			return nil, "", err
		}
		err = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: &agentv1.Registration{
			AgentId: id, InstanceId: id, Name: id, StartTimeUnixNano: 1, Group: group,
		}}})
		if err != nil {
			return nil, "", err
		}
		m, err := stream.Recv()
		return stream, m.GetConfiguration().GetGroupName(), err
	}
	spans := func(token, id string) error {
		ctx := showing(t.Context(), schema.MetadataToken, token, schema.MetadataAgent, id, schema.MetadataSecret, "secret of "+id)
		_, err := coltracepb.NewTraceServiceClient(conn).Export(ctx, &coltracepb.ExportTraceServiceRequest{})
		return err
	}
	shop, group, err := connect("s", "one", "shop")
	if err != nil || group != "shop" {
		t.Fatalf("an agent of the shop joined %q: %v", group, err)
	}
	bank, group, err := connect("b", "two", ids["bank"])
	if err != nil || group != "bank" {
		t.Fatalf("an agent of the bank joined %q: %v", group, err)
	}
	for _, group := range []string{"bank", ids["bank"], "", "default"} {
		if _, _, err := connect("s", "three", group); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "control.group_tokens") {
			t.Errorf("an agent of the shop joins %q: %v, want PERMISSION_DENIED", group, err)
		}
	}
	for _, token := range []string{"", "x", "shop:s"} {
		if _, _, err := connect(token, "three", "shop"); status.Code(err) != codes.Unauthenticated {
			t.Errorf("with the token %q: %v, want UNAUTHENTICATED", token, err)
		}
	}
	if err := errors.Join(spans("s", "one"), spans("b", "two")); err != nil {
		t.Errorf("spans of members: %v", err)
	}
	removed := time.Now()
	write("bank:b\n")
	if m, err := shop.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the revoked agent gets %v, %v, want UNAUTHENTICATED", m, err)
	}
	t.Logf("the stream ended %s after its token was removed", time.Since(removed))
	if err := spans("s", "one"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("spans of the revoked agent: %v, want UNAUTHENTICATED", err)
	}
	beat := &agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{TimeUnixNano: 1}}}
	if err := bank.Send(beat); err != nil {
		t.Fatal(err)
	}
	if m, err := bank.Recv(); err != nil || m.GetHeartbeatReply() == nil {
		t.Errorf("the other group's agent gets %v, %v", m, err)
	}
}

// Collectors need a bearer token over both protocols, and agents their own.
func TestCollectorsPresentBearerTokens(t *testing.T) {
	s := serve(t, kafkatest.Start(t, broker.Options{}).Addr(), func(s *server) {
		s.Roles, s.Control.AgentTokens, s.Gateway.BearerTokens = []string{roleGateway, roleControl}, []string{"agents"}, []string{"clients"}
		s.Gateway.HTTPListen = "127.0.0.1:0"
	})
	conn := s.dial(t)
	for name, tc := range map[string]struct {
		pairs []string
		want  codes.Code
	}{
		"a collector":                     {[]string{"authorization", "Bearer clients"}, codes.OK},
		"a collector without a token":     {nil, codes.Unauthenticated},
		"a collector with an agent's":     {[]string{"authorization", "Bearer agents"}, codes.Unauthenticated},
		"an agent":                        {[]string{schema.MetadataAgent, "a", schema.MetadataToken, "agents"}, codes.OK},
		"an agent with a collector's":     {[]string{schema.MetadataAgent, "a", schema.MetadataToken, "clients", "authorization", "Bearer clients"}, codes.Unauthenticated},
		"a collector that names an agent": {[]string{schema.MetadataAgent, "a"}, codes.Unauthenticated},
	} {
		_, err := coltracepb.NewTraceServiceClient(conn).Export(showing(t.Context(), tc.pairs...), &coltracepb.ExportTraceServiceRequest{})
		if status.Code(err) != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
	for token, want := range map[string]int{"clients": http.StatusOK, "": http.StatusUnauthorized, "agents": http.StatusUnauthorized} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.otlp.String()+"/v1/traces", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("over HTTP with %q: %d, want %d", token, resp.StatusCode, want)
		}
	}
}

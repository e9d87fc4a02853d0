package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
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
		AgentId: id, InstanceId: instance, Name: id, StartTimeUnixNano: 1,
	}}})
	if err != nil {
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
	for deadline := time.Now().Add(30 * time.Second); spans(schema.MetadataAgent, "a") == nil; <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the other replica accepts another client's spans as the agent's")
		}
	}
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
	if err := one.client(t, "").DeleteAgent(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(20 * time.Millisecond) {
		err := join(showing(t.Context(), schema.MetadataSecret, "new"), stranger, "a", "3")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("an agent with a new secret, after the id was released: %v", err)
		}
		_ = one.client(t, "").DeleteAgent(t.Context(), "a") // the former stream may not have been known to be over
	}
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
		default:
			t.Fatal(err)
		}
	}
	if joined < 250 || joined > 350 {
		t.Errorf("one address filled %d of 600 places, want half", joined)
	}
}

package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Flows take the same path as spans: flows that agents send again are stored
// once, flows that ClickHouse rejects are diverted and can be replayed, flows
// that no server can use are rejected with a reason.
func TestFlowsAreStoredOnce(t *testing.T) {
	s := newSite(t, "")
	server, _ := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	client := agentv1.NewFlowServiceClient(newClient(t, s.grpc, 1).conn)
	gen := otlptest.NewFlows(1, time.Now().Add(-time.Minute))
	first := gen.Request(600)
	as := func(id string, more ...string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), append(more, schema.MetadataAgent, id)...)
	}
	agent := as(first.GetAgentId())
	resend := as(first.GetAgentId(), schema.MetadataResend, "1")
	export := func(ctx context.Context, req *agentv1.ExportFlowsRequest) *agentv1.ExportFlowsPartialSuccess {
		t.Helper()
		resp, err := client.ExportFlows(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetPartialSuccess()
	}

	if p := export(agent, first); p != nil {
		t.Fatalf("rejected: %v", p)
	}
	server.eventually(time.Minute, exactlyFlows(conn, 600))
	export(agent, first) // the acknowledgement was lost: the same bytes come again
	parts := gen.Request(0)
	parts.Groups = append(parts.Groups, first.GetGroups()[:5]...) // it restarted, and cuts its spool into other requests
	export(resend, parts)
	parts.Groups = append(first.GetGroups()[5:], gen.Request(60).GetGroups()...)
	export(resend, parts)
	server.eventually(time.Minute, exactlyFlows(conn, 660))

	bad := gen.Request(30)
	bad.Groups[0].Flows[0].PeerPort = 1 << 20
	if p := export(agent, bad); p.GetRejectedFlows() != 1 || !strings.Contains(p.GetErrorMessage(), "port") {
		t.Errorf("partial success: %v", p)
	}
	if _, err := client.ExportFlows(as("somebody-else"), gen.Request(30)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("flows with another agent's id: %v", err)
	}
	server.eventually(time.Minute, exactlyFlows(conn, 689))

	const table = "ALTER TABLE metaflow.flows_local "
	if err := conn.Exec(t.Context(), table+"ADD CONSTRAINT fine CHECK retransmits = 0"); err != nil {
		t.Fatal(err)
	}
	export(agent, gen.Request(300))
	refused := 0
	server.eventually(time.Minute, func() error {
		list := run(t, "deadletter", "list", "--config", s.config)
		if refused = strings.Count(list, "VIOLATED_CONSTRAINT"); refused == 0 || !strings.Contains(list, schema.TopicFlows) {
			return fmt.Errorf("the list is incomplete: %s", list)
		}
		return exactlyFlows(conn, 989-refused)()
	})
	if err := conn.Exec(t.Context(), table+"DROP CONSTRAINT fine"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		output := run(t, "deadletter", "replay", "--config", s.config, "--again")
		if want := fmt.Sprintf("0 spans and %d flows sent again, 0 letters skipped", refused); !strings.Contains(output, want) {
			t.Errorf("replay printed %q, want %q in it", output, want)
		}
		server.eventually(time.Minute, exactlyFlows(conn, 989))
	}
}

// exactlyFlows returns nil once the given number of flows is stored, none of
// them twice.
func exactlyFlows(conn driver.Conn, want int) func() error {
	return func() error {
		var rows, connections uint64
		err := conn.QueryRow(context.Background(), "SELECT count(), uniqExact(agent_id, network_namespace, connection, time) FROM metaflow.flows").Scan(&rows, &connections)
		if err == nil && (rows != uint64(want) || connections != rows) {
			err = fmt.Errorf("%d flows stored, %d distinct, want %d", rows, connections, want)
		}
		return err
	}
}

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// A server rejects spooled spans, which were acknowledged, so the agent parks
// them with the cause. Operators see them, fix the cause, here a narrow window
// of times, and send them again.
func TestParkedRequestsAreRetried(t *testing.T) {
	const narrow = "METAFLOW_GATEWAY_ACCEPT_PAST"
	start := func(dir, grpc, past string) *standalone {
		t.Setenv(narrow, past)
		s := startStandaloneAt(t, dir, grpc)
		_ = os.Unsetenv(narrow) // not a key of the agent
		return s
	}
	dir, spool, port, grpc := t.TempDir(), t.TempDir(), ports.FreeAddress(t), ports.FreeAddress(t)
	s := start(dir, grpc, "1h")
	a := startAgent(t, spool, grpc)
	enable(t, s.at.HTTP, groupID(t, mustCtl(t, s.at.HTTP, "agent-group", "list"), "default"), port)
	a.eventually(time.Minute, func() error { return listens(port) })

	s.kill()
	c := newSender(t, port, "/v1/traces", 1)
	c.gen = otlptest.New(1, otlptest.Options{Start: time.Now().Add(-3 * time.Hour)})
	for range 5 {
		c.send(t.Context(), 50)
	}
	s = start(dir, grpc, "1h")
	parked := func(command string) (string, int) {
		p := startProgram(t, "metaflow-agent", "parked", command, "--spool-dir", spool, "--server", grpc)
		<-p.done
		return p.output.String(), p.cmd.ProcessState.ExitCode()
	}
	a.eventually(time.Minute, func() error {
		if out, code := parked("list"); code != 0 || !strings.Contains(out, "5 parked requests") || strings.Count(out, "50 of 50 rejected") != 5 || !strings.Contains(out, "start_time") {
			return fmt.Errorf("status %d: %s", code, out)
		}
		return nil
	})
	s.eventually(time.Minute, func() error { return agentState(t, s.at.HTTP, "parked list") })
	if out, code := parked("retry"); code != 1 || !strings.Contains(out, "0 requests sent, 5 requests not stored") {
		t.Errorf("retry before the cause is fixed: status %d: %s", code, out)
	}

	s.kill()
	s = start(dir, grpc, "168h")
	if out, code := parked("retry"); code != 0 || !strings.Contains(out, "5 requests sent, 0 requests not stored") {
		t.Errorf("retry: status %d: %s", code, out)
	}
	conn := open(t, s.at.ClickHouseNative)
	s.eventually(time.Minute, exactly(conn, c.sent))
	if out, code := parked("list"); code != 0 || !strings.Contains(out, "0 parked requests") {
		t.Errorf("after retry: status %d: %s", code, out)
	}
}

package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// An agent restarts while its server is away. It has a stored configuration and takes
// spans into its spool, but it is not ready, and its log and /ready say why.
func TestAgentSaysWhyNoServerIsReached(t *testing.T) {
	grpc, data, spool, port := ports.FreeAddress(t), t.TempDir(), t.TempDir(), ports.Free(t)
	s := startStandaloneAt(t, data, grpc)
	a := startAgent(t, spool, grpc)
	a.eventually(time.Minute, a.answersReady(http.StatusOK))
	file := filepath.Join(t.TempDir(), "group.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "inputs: {integration: {enabled: true, listen_port: %d}}\n", port), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCtl(t, s.at.HTTP, "agent-group-config", "update", "default", "-f", file)
	send := func() error {
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/traces", port), "application/json", strings.NewReader(
			`{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7","name":"x","startTimeUnixNano":"`+
				fmt.Sprint(time.Now().UnixNano())+`","endTimeUnixNano":"`+fmt.Sprint(time.Now().UnixNano())+`"}]}]}]}`))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
	a.eventually(time.Minute, send)
	says := func(p *process, words ...string) {
		t.Helper()
		p.eventually(time.Minute, func() error {
			for _, word := range words {
				if !strings.Contains(p.output.String(), word) {
					return errors.New("the log lacks " + word)
				}
			}
			return nil
		})
	}
	says(a.process, `"connected to a server"`)

	s.terminate()
	a.eventually(time.Minute, send)
	says(a.process, "no server takes this agent", "connection refused", "spooling requests to disk")
	a.eventually(time.Minute, a.answersReady(http.StatusOK, "no server answers since", "connection refused", "in the spool"))
	a.terminate()

	a = startAgent(t, spool, grpc)
	a.eventually(time.Minute, send)
	a.eventually(time.Minute, a.answersReady(http.StatusServiceUnavailable, `"server","ok":false`, "connection refused", `"configuration","ok":true`))
	startStandaloneAt(t, data, grpc)
	a.eventually(time.Minute, a.answersReady(http.StatusOK))
	says(a.process, `"connected to a server","after"`)
}

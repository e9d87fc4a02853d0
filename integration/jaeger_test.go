package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/integration/internal/otelcol"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// A Jaeger whose storage is a MetaFlow server stores what it receives by the server's OTLP
// port, and reads it by the role query. `make jaeger` builds it.
func TestJaegerStoresAndReads(t *testing.T) {
	program := otelcol.Jaeger(t, repository(t))
	s := startStandalone(t, t.TempDir())
	api, otlp := ports.FreeAddress(t), ports.FreeAddress(t)
	otelcol.Run(t, program, otelcol.JaegerConfig(s.at.QueryGRPC, s.at.GRPC, otlp, api, ports.FreeAddress(t)))
	s.eventually(2*time.Minute, func() error {
		code, body, err := get("http://" + api + "/api/services")
		if err != nil || code != http.StatusOK {
			return fmt.Errorf("%d %s: %w", code, body, err)
		}
		return nil
	})
	trace := sendWithSDK(t, otlp)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), 2))
	s.eventually(time.Minute, func() error {
		code, body, err := get("http://" + api + "/api/traces/" + trace)
		if err != nil || code != http.StatusOK || !strings.Contains(body, "GET /cart/{user}") {
			return fmt.Errorf("%d %s: %w", code, body, err)
		}
		return nil
	})
}

package integration

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The server stores spans sent over OTLP/HTTP like those sent over OTLP/gRPC:
// from an SDK with only OTEL_EXPORTER_OTLP_ENDPOINT set, and from an HTTP/2
// client without TLS that adds a slash.
func TestStandaloneStoresOTLPHTTP(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	if s.at.OTLPHTTP == "" {
		t.Fatal("the server does not receive OTLP/HTTP")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+s.at.OTLPHTTP)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
	exporter, err := otlptracehttp.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	traceID := sendOver(t, exporter)

	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	body := otlptest.New(1, otlptest.Options{Start: time.Now().Add(-time.Minute)}).RequestBytes(50)
	for range 2 { // as after a lost reply
		resp, err := client.Post("http://"+s.at.OTLPHTTP+"//v1/traces/", "application/x-protobuf", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
			t.Errorf("status %s over %s", resp.Status, resp.Proto)
		}
	}
	conn := open(t, s.at.ClickHouseNative)
	s.eventually(time.Minute, exactly(conn, 52))
	var service, ip string
	err = conn.QueryRow(t.Context(), `SELECT service_name, toString(ip) FROM metaflow.spans WHERE trace_id = $1 AND kind = 'server'`, traceID).Scan(&service, &ip)
	if err != nil || service != "shop" || ip != "::" {
		t.Errorf("service %q, address %q, %v; the server adds no address of the sender, as by OTLP/gRPC", service, ip, err)
	}
}

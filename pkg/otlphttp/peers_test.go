package otlphttp_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// dialFrom connects from another local address than the clients of start.
func dialFrom(t *testing.T, r *running, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := d.Dial("tcp", r.Addr().String())
	if err != nil {
		t.Skipf("this host does not connect from %s: %v", address, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func announce(t *testing.T, conn net.Conn, path string) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 60000000\r\n\r\n", path); err != nil {
		t.Log(err) // the connection was closed for others
	}
}

// One address announces requests and sends nothing. Other clients of this port, and of
// other ports with the same budget, are still served.
func TestAnnouncedRequestsOfOneAddressLeaveRoomForOthers(t *testing.T) {
	cfg := testConfig()
	limits := inflight.Limits{RequestBytes: 64 << 20, Bytes: 256 << 20, Requests: 64, PeerShare: 0.5}
	budget := inflight.New(limits)
	reg := prometheus.NewRegistry()
	r := start(t, cfg, accept, otlphttp.Options{Metrics: otlphttp.NewMetrics(reg), Budget: budget})
	const connections = 300
	for range connections {
		announce(t, dialFrom(t, r, "127.0.0.2"), "/v1/traces")
	}
	refused := func() float64 {
		return prom.Value(t, reg, "metaflow_otlphttp_refused_requests_total", "peer_requests_in_flight") +
			prom.Value(t, reg, "metaflow_otlphttp_refused_requests_total", "peer_bytes_in_flight")
	}
	wait.Until(t, "every announced request is refused or admitted", func() bool {
		_, requests := budget.InFlight()
		return int(refused())+requests >= connections
	})
	if _, requests := budget.InFlight(); requests > limits.Requests/2 {
		t.Errorf("%d requests of one address are in flight, its share is %d", requests, limits.Requests/2)
	}
	r.post(t, protobufType, "", []byte("x")).accepted(t)
	other := budget.Peer(netip.MustParseAddr("192.0.2.1"))
	defer other.Close()
	granted, why := other.Enter()
	if why != "" {
		t.Fatalf("another port that shares the budget refuses: %s", why)
	}
	other.Leave(granted)
}

// An address that opens connections displaces only its own, whatever it sends on them;
// the idle connection of another address stays.
func TestConnectionsOfOneAddressDisplaceOnlyItsOwn(t *testing.T) {
	for name, tc := range map[string]struct {
		path   string // "" sends nothing
		bound  string
		ofPeer int
	}{
		"idle, over the bound of an address":           {"", "peer_connections", 10},
		"idle, over the bound of all":                  {"", "connections", 1000},
		"paths that are not served":                    {"/nowhere", "connections", 1000},
		"requests that are refused, with their bodies": {"/v1/traces", "connections", 1000},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxConnections, cfg.MaxConnectionsPerPeer, cfg.MaxRequestsInFlight = 20, tc.ofPeer, 4
			reg := prometheus.NewRegistry()
			r := start(t, cfg, accept, otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
			idle := dialFrom(t, r, "127.0.0.3")
			answers := bufio.NewReader(idle)
			export := func() {
				t.Helper()
				if _, err := io.WriteString(idle, "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1\r\n\r\nx"); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatalf("the connection of another address was closed: %v", err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					t.Fatalf("status %s, %v", resp.Status, err)
				}
			}
			export()
			const connections = 60
			for range connections {
				conn := dialFrom(t, r, "127.0.0.2")
				if tc.path != "" {
					announce(t, conn, tc.path)
				}
			}
			wait.Until(t, "connections are within the bound", func() bool {
				return prom.Value(t, reg, "metaflow_otlphttp_connections") <= float64(cfg.MaxConnections)
			})
			wait.Until(t, "some were closed", func() bool {
				return prom.Value(t, reg, "metaflow_otlphttp_evicted_connections_total", tc.bound) > 0
			})
			export()
		})
	}
}

// A connection returns its part of the budget when it ends or is closed for others.
func TestConnectionsLeaveNothingBehind(t *testing.T) {
	cfg := testConfig()
	cfg.MaxConnections = 5
	budget := inflight.New(inflight.Limits{RequestBytes: 1 << 20, Bytes: 4 << 20, Requests: 8, PeerShare: 0.5})
	entered := make(chan struct{}, 1)
	r := start(t, cfg, consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return signal.Result{}, ctx.Err()
	}), otlphttp.Options{Budget: budget})
	for range 20 {
		conn := dialFrom(t, r, "127.0.0.2")
		if _, err := io.WriteString(conn, "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1\r\n\r\nx"); err != nil {
			t.Fatal(err)
		}
		<-entered
		conn.Close()
		wait.Until(t, "nothing is in flight", func() bool {
			bytes, requests := budget.InFlight()
			return bytes == 0 && requests == 0
		})
	}
}

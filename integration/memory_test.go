package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// While Kafka takes nothing, a gateway that is full of requests takes at most two and a half bytes of
// memory for each byte of them, besides what it takes when it is idle. Requests that are refused meanwhile
// do not add to it.
func TestMemoryOfRequestsInFlight(t *testing.T) {
	t.Run("plain", func(t *testing.T) { testMemoryInFlight(t, false) })
	t.Run("gzip", func(t *testing.T) { testMemoryInFlight(t, true) })
}

func testMemoryInFlight(t *testing.T, compressed bool) {
	const bound, most = 192 << 20, 2.5
	t.Setenv("METAFLOW_GRPC_MAX_BYTES_IN_FLIGHT", strconv.Itoa(bound))
	t.Setenv("METAFLOW_GRPC_PEER_SHARE", "1")         // all clients are this process
	t.Setenv("METAFLOW_KAFKA_PRODUCE_TIMEOUT", "60s") // a request is refused when others have waited for half of it
	s := newSite(t, "")
	server, addr := s.serve("gateway")
	ready(server, addr)
	newClient(t, s.grpc, 1).send(t.Context(), 100)
	idle := residentBytes(t, server.cmd.Process.Pid, "VmRSS")

	s.kafka.Cluster().ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		s.kafka.Cluster().KeepControl()
		return refuseProduce(req), nil, true
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var senders sync.WaitGroup
	defer senders.Wait()
	defer stop()
	body := otlptest.New(2, otlptest.Options{Start: time.Now().Add(-time.Minute)}).RequestBytes(512)
	if compressed {
		body = gzipped(t, body)
	}
	for range 8 {
		opts := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
		if compressed {
			opts = append(opts, grpc.WithCompressor(otlptest.Precompressed("gzip"))) //nolint:staticcheck // the successor would compress each time, which takes more than the server does
		}
		conn, err := grpc.NewClient(s.grpc, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		for range 110 { // more than fit
			senders.Go(func() { sendRepeatedly(ctx, t, conn, body) })
		}
	}
	var full, refused float64
	server.eventually(2*time.Minute, func() error {
		_, text, err := get("http://" + addr + "/metrics")
		if err != nil {
			return err
		}
		inFlight, err1 := prom.Sum(text, "metaflow_gateway_bytes_in_flight", "")
		// By the bound, or because the requests before it wait for too long: whichever
		// comes first on this machine.
		atOnce, err2 := prom.Sum(text, "metaflow_gateway_refused_requests_total", "")
		late, err3 := prom.Sum(text, "metaflow_gateway_requests_total", `code="Unavailable"`)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		full, refused = max(full, inFlight), atOnce+late
		if full < 0.9*bound || refused < 20_000 {
			return fmt.Errorf("%.0f of %d bytes are in flight, %.0f requests refused", full, bound, refused)
		}
		return nil
	})
	peak := residentBytes(t, server.cmd.Process.Pid, "VmHWM")
	ratio := float64(peak-idle) / full
	t.Logf("idle %d MiB, at most %d MiB with %.0f MiB in flight: %.2f bytes for each; %.0f requests refused", idle>>20, peak>>20, full/(1<<20), ratio, refused)
	if ratio > most {
		t.Errorf("%.2f bytes of memory for each byte in flight, want at most %g", ratio, most)
	}
}

// refuseProduce answers as a broker without enough replicas in sync.
func refuseProduce(req kmsg.Request) kmsg.Response {
	produce := req.(*kmsg.ProduceRequest)                  //nolint:forcetypeassert // of the request's key
	resp := produce.ResponseKind().(*kmsg.ProduceResponse) //nolint:forcetypeassert // of the request's key
	for _, topic := range produce.Topics {
		t := kmsg.NewProduceResponseTopic()
		t.Topic, t.TopicID = topic.Topic, topic.TopicID
		for _, partition := range topic.Partitions {
			p := kmsg.NewProduceResponseTopicPartition()
			p.Partition, p.ErrorCode = partition.Partition, kerr.NotEnoughReplicas.Code
			t.Partitions = append(t.Partitions, p)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// sendRepeatedly sends the request until ctx ends.
func sendRepeatedly(ctx context.Context, t *testing.T, conn *grpc.ClientConn, body []byte) {
	for ctx.Err() == nil {
		var reply []byte
		err := conn.Invoke(ctx, coltracepb.TraceService_Export_FullMethodName, body, &reply, grpc.ForceCodec(otlptest.Raw))
		if err != nil && ctx.Err() == nil && status.Code(err) != codes.Unavailable {
			t.Errorf("export: %v", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// residentBytes returns a line of /proc/PID/status in bytes.
func residentBytes(t *testing.T, pid int, name string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s in %s", name, text)
	return 0
}

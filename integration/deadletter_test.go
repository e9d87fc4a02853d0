package integration

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
)

// Rows that ClickHouse rejects for their values, and records that are not OTLP,
// are diverted with their cause while everything else is stored. After the
// cause is fixed, a replay stores the rest once, however often it is repeated.
func TestDeadLettersAreListedAndReplayed(t *testing.T) {
	s := newSite(t, "")
	server, _ := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	const table = "ALTER TABLE metaflow.spans_local "
	if err := conn.Exec(t.Context(), table+"ADD CONSTRAINT fine CHECK service_name != 'cartservice'"); err != nil {
		t.Fatal(err)
	}
	produceGarbage(t, s.kafkaAddr)
	c := newClient(t, s.grpc, 1)
	c.send(t.Context(), 300)

	refused := 0
	server.eventually(time.Minute, func() error {
		list := run(t, "deadletter", "list", "--config", s.config)
		refused = itemsOf(t, list, "VIOLATED_CONSTRAINT")
		if !strings.Contains(list, "malformed") || refused == 0 {
			return fmt.Errorf("the list is incomplete: %s", list)
		}
		return exactly(conn, c.sent-refused)()
	})
	if err := conn.Exec(t.Context(), table+"DROP CONSTRAINT fine"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		output := run(t, "deadletter", "replay", "--config", s.config)
		if want := fmt.Sprintf("%s and 0 flows sent again, 1 letter skipped", count(refused, "span")); !strings.Contains(output, want) {
			t.Errorf("replay printed %q, want %q in it", output, want)
		}
		server.eventually(time.Minute, exactly(conn, c.sent))
	}
}

// itemsOf sums the items of the listed letters with a cause.
func itemsOf(t *testing.T, list, cause string) (items int) {
	t.Helper()
	for line := range strings.Lines(list) {
		if !strings.Contains(line, cause) {
			continue
		}
		n, err := strconv.Atoi(strings.Fields(line)[6]) // OFFSET, two dates with a time, FROM
		if err != nil {
			t.Fatalf("read %q: %v", line, err)
		}
		items += n
	}
	return items
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// run runs the server's program to its end and returns its output.
func run(t *testing.T, args ...string) string {
	t.Helper()
	p := start(t, args...)
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("%v: exit status %d: %s", args, code, p.output.String())
	}
	return p.output.String()
}

// produceGarbage writes a record that is not OTLP to our topic, as another
// program might.
func produceGarbage(t *testing.T, addr string) {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{addr}
	client, err := kafka.New(cfg, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	producer := client.NewProducer(schema.TopicSpans, kafka.ProducerOptions{})
	done := make(chan error, 1)
	go func() { done <- producer.Run(ctx) }()
	if err := producer.Produce(ctx, []kafka.Outgoing{{Partition: 0, Value: []byte("this is no OTLP")}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// An agent sends spans again after any time, cut into other requests, and marks
// them as resent. None is stored twice.
func TestResentSpansAreStoredOnce(t *testing.T) {
	s := newSite(t, "")
	server, _ := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	first, second := newClient(t, s.grpc, 7), newClient(t, s.grpc, 7)
	same := otlptest.Options{Start: time.Now().Add(-time.Minute)}
	first.gen, second.gen = otlptest.New(7, same), otlptest.New(7, same)
	first.send(t.Context(), 100)
	first.send(t.Context(), 100)
	server.eventually(time.Minute, exactly(conn, 200))
	resend := metadata.AppendToOutgoingContext(t.Context(), schema.MetadataResend, "1", schema.MetadataAgent, "node-1")
	second.send(resend, 60)
	second.send(resend, 140)
	second.send(resend, 40) // these spans are new
	server.eventually(time.Minute, exactly(conn, 240))
	var agents uint64
	if err := conn.QueryRow(t.Context(), "SELECT countIf(agent_id = 'node-1') FROM metaflow.spans").Scan(&agents); err != nil || agents != 40 {
		t.Errorf("%d spans have the agent's id, want 40: %v", agents, err)
	}
}

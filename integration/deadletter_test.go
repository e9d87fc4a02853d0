package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
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
		output := run(t, "deadletter", "replay", "--config", s.config, "--again")
		if want := fmt.Sprintf("%s and 0 flows sent again, 1 letter skipped", count(refused, "span")); !strings.Contains(output, want) {
			t.Errorf("replay printed %q, want %q in it", output, want)
		}
		server.eventually(time.Minute, exactly(conn, c.sent))
	}
}

// Letters are shown in full, dropped, and replayed by what selects them. Of two
// operators that replay at the same time, one sends each letter.
func TestDeadLettersAreHandled(t *testing.T) {
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	const table = "ALTER TABLE metaflow.spans_local "
	if err := conn.Exec(t.Context(), table+"ADD CONSTRAINT fine CHECK attributes['k'] = '0'"); err != nil {
		t.Fatal(err)
	}
	produceGarbage(t, s.kafkaAddr)
	c := newClient(t, s.grpc, 1)
	const bad = 3
	spans := bad
	for i := range bad {
		c.exportOne(t.Context(), i, "k", strconv.Itoa(1+i))
	}
	type letter struct {
		ID, State, Cause string
		Items            int
	}
	list := func(args ...string) (letters []letter) {
		decoder := json.NewDecoder(strings.NewReader(run(t, append([]string{"deadletter", "list", "--config", s.config, "-o", "json"}, args...)...)))
		for decoder.More() {
			var l letter
			if err := decoder.Decode(&l); err != nil {
				t.Fatal(err)
			}
			letters = append(letters, l)
		}
		return letters
	}
	server.eventually(3*time.Minute, func() error {
		c.exportOne(t.Context(), spans, "k", "0") // shows that the table is not at fault
		spans++
		items := 0
		for _, l := range list("--cause", "VIOLATED") {
			items += l.Items
		}
		if garbage := len(list("--cause", "malformed")); items != bad || garbage == 0 {
			return fmt.Errorf("%d spans and %d malformed records are dead letters", items, garbage)
		}
		return nil
	})

	refused := list("--cause", "VIOLATED")
	file := filepath.Join(t.TempDir(), "value")
	shown := run(t, "deadletter", "show", refused[0].ID, "--config", s.config, "--out", file)
	if value, err := os.ReadFile(file); err != nil || traces.Signal.Count(value) != refused[0].Items {
		t.Errorf("the saved value has %d spans, %v; want %d", traces.Signal.Count(value), err, refused[0].Items)
	}
	for _, want := range []string{"VIOLATED_CONSTRAINT", "header metaflow-topic:", `"resourceSpans"`} {
		if !strings.Contains(shown, want) {
			t.Errorf("show printed no %q: %s", want, shown)
		}
	}
	malformed := list("--cause", "malformed")
	if shown := run(t, "deadletter", "show", malformed[0].ID, "--config", s.config); !strings.Contains(shown, "no request of its topic") {
		t.Errorf("show printed %s", shown)
	}

	run(t, "deadletter", "drop", "--cause", "malformed", "--config", s.config)
	if left := list(); len(left) != len(refused) {
		t.Errorf("%d letters are left, want %d", len(left), len(refused))
	}
	if all := list("--all", "--cause", "malformed"); len(all) != len(malformed) || all[0].State != "dropped" {
		t.Errorf("dropped letters: %+v", all)
	}

	if err := conn.Exec(t.Context(), table+"DROP CONSTRAINT fine"); err != nil {
		t.Fatal(err)
	}
	var outputs [2]string
	var operators sync.WaitGroup
	for i := range outputs {
		operators.Go(func() { outputs[i] = run(t, "deadletter", "replay", "--config", s.config) })
	}
	operators.Wait()
	sent := 0
	for _, output := range outputs {
		before, _, _ := strings.Cut(output, " span")
		fields := strings.Fields(before)
		n, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			t.Fatalf("read %q: %v", output, err)
		}
		sent += n
	}
	if sent != bad {
		t.Errorf("two replays sent %d spans, want %d: %q", sent, bad, outputs)
	}
	server.eventually(time.Minute, exactly(conn, spans))
	server.eventually(time.Minute, settled(addr))
	if left := list(); len(left) != 0 {
		t.Errorf("letters are left: %+v", left)
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

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
)

const writerGroup = "metaflow-writer"

// admin returns a Kafka client for the requests of an operator.
func admin(t *testing.T, addr string) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// settled returns nil once a server has stored everything.
func settled(addr string) func() error {
	return func() error {
		_, metrics, err := get("http://" + addr + "/metrics")
		if err != nil {
			return err
		}
		partitions := 0
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "metaflow_writer_lag_records{") && strings.Contains(line, `signal="traces"`) {
				partitions++
				if !strings.HasSuffix(strings.TrimSpace(line), " 0") {
					return fmt.Errorf("behind: %s", line)
				}
			}
		}
		if partitions == 0 {
			return fmt.Errorf("no partition is assigned yet")
		}
		return nil
	}
}

// metric returns the sum of a metric's series that contain the text, which is a label's or empty.
func metric(t *testing.T, addr, name, label string) float64 {
	t.Helper()
	_, metrics, err := get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	sum, err := prom.Sum(metrics, name, label)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// The group's offsets are deleted while the log still has its records: nothing
// is stored again, and the log and metrics tell operators.
func TestOffsetsDeleted(t *testing.T) {
	_, s := apacheSite(t)
	server, _ := s.serveReady("gateway,writer")
	c := newClient(t, s.grpc, 1)
	for range 4 {
		c.send(t.Context(), 50)
	}
	conn := open(t, s.engine.NativeAddr())
	server.eventually(time.Minute, exactly(conn, 200))
	if code := server.terminate(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	req := kmsg.NewPtrDeleteGroupsRequest()
	req.Groups = []string{writerGroup}
	cl := admin(t, s.kafkaAddr)
	err := wait.Poll(time.Minute, nil, func() error { // the group may not be empty yet
		resp, err := req.RequestWith(t.Context(), cl)
		if err == nil && resp.Groups[0].ErrorCode != 0 {
			err = fmt.Errorf("error code %d", resp.Groups[0].ErrorCode)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server, addr := s.serve("gateway,writer")
	ready(server, addr)
	server.eventually(time.Minute, settled(addr))
	if err := exactly(conn, 200)(); err != nil {
		t.Error(err)
	}
	if n := metric(t, addr, "metaflow_writer_positions_doubted_total", `why="none"`); n == 0 {
		t.Error("the deleted offsets were not reported")
	}
	if n := metric(t, addr, "metaflow_writer_spans_duplicate_total", `by="position"`); n != 200 {
		t.Errorf("%v spans counted as stored before", n)
	}
}

// ClickHouse recorded the tokens of blocks and died before their parts were in
// place. The writer that finishes the plans finds the rows missing and stores
// them.
//
// Batches of one byte are full at once, and too large to share an INSERT: so
// ClickHouse knows the token of each range.
func TestTokensWithoutParts(t *testing.T) {
	t.Setenv("METAFLOW_WRITER_MAX_BATCH_BYTES", "1")
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	// Records that are in the log before their partition has an owner are looked
	// up, and inserted under tokens of their own.
	server.eventually(time.Minute, func() error {
		if n := strings.Count(server.output.String(), `msg="partition taken over" topic=metaflow.spans`); n != 6 {
			return fmt.Errorf("%d of 6 partitions are taken over", n)
		}
		return nil
	})
	newClient(t, s.grpc, 1).send(t.Context(), 500) // at most one record per partition
	server.eventually(time.Minute, exactly(open(t, s.engine.NativeAddr()), 500))
	server.eventually(time.Minute, settled(addr))
	if code := server.terminate(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	// As if the last owner had died between its inserts and its commits.
	cl := admin(t, s.kafkaAddr)
	planned := 0
	for partition := range int32(6) {
		if planAgain(t, cl, partition) {
			planned++
		}
	}
	if planned < 2 {
		t.Fatalf("%d ranges planned", planned)
	}
	s.stopEngine()
	removeParts(t, filepath.Join(s.dir, "clickhouse"))
	s.startEngine()
	conn := open(t, s.engine.NativeAddr())
	if rows, _, err := stored(conn); err != nil || rows != 0 {
		t.Fatalf("%d rows left, %v", rows, err)
	}
	server, addr = s.serve("gateway,writer")
	ready(server, addr)
	server.eventually(time.Minute, exactly(conn, 500))
	server.eventually(time.Minute, settled(addr))
	if err := exactly(conn, 500)(); err != nil {
		t.Error(err)
	}
	if n := metric(t, addr, "metaflow_writer_tokens_without_rows_total", ""); n != float64(planned) {
		t.Errorf("%v tokens without rows counted, want %d", n, planned)
	}
}

// planAgain commits, for a partition with one record, the plan under which it
// was inserted.
func planAgain(t *testing.T, cl *kgo.Client, partition int32) bool {
	t.Helper()
	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Group = writerGroup
	fetch.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: schema.TopicSpans, Partitions: []int32{partition}}}
	fetched, err := fetch.RequestWith(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	topics := fetched.Topics
	var offset int64
	var metadata string
	if len(topics) == 1 {
		offset, metadata = topics[0].Partitions[0].Offset, *topics[0].Partitions[0].Metadata
	} else {
		p := fetched.Groups[0].Topics[0].Partitions[0]
		offset, metadata = p.Offset, *p.Metadata
	}
	if offset != 1 {
		return false
	}
	recorded, ok, err := delivery.ParseCommit(offset, metadata)
	if err != nil || !ok {
		t.Fatalf("committed %d %q: %v", offset, metadata, err)
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(cl.OptValue(kgo.SeedBrokers).([]string)...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		schema.TopicSpans: {partition: kgo.NewOffset().At(0)},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	first := reader.PollFetches(t.Context()).Records()[0].Timestamp.UnixMilli()
	recorded.Plan = delivery.Plan{To: 1, First: first}
	text := recorded.Metadata(0)
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group, commit.Generation = writerGroup, -1
	id, err := kafka.ParseTopicID(recorded.Topic)
	if err != nil {
		t.Fatal(err)
	}
	commit.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: schema.TopicSpans, TopicID: id, Partitions: []kmsg.OffsetCommitRequestTopicPartition{
		{Partition: partition, Offset: 0, LeaderEpoch: -1, Metadata: &text},
	}}}
	resp, err := commit.RequestWith(t.Context(), cl)
	if err != nil || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatalf("commit: %+v, %v", resp, err)
	}
	return true
}

// removeParts deletes every part of the table of spans. The table's server must
// not run.
func removeParts(t *testing.T, dataDir string) {
	t.Helper()
	removed := 0
	err := filepath.WalkDir(dataDir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		columns, missing := os.ReadFile(filepath.Join(path, "columns.txt"))
		if missing != nil || !strings.Contains(string(columns), "`parent_span_id`") {
			return nil //nolint:nilerr // not a part, or not of this table
		}
		removed++
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		return filepath.SkipDir
	})
	if err != nil || removed == 0 {
		t.Fatalf("%d parts removed, %v", removed, err)
	}
}

// A materialized view that an operator attached to the table fails after the
// rows are inserted.
func TestViewFails(t *testing.T) {
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	for _, sql := range []string{
		"CREATE TABLE metaflow.mine (n UInt8) ENGINE = MergeTree ORDER BY n",
		"CREATE MATERIALIZED VIEW metaflow.mine_of_spans TO metaflow.mine AS SELECT throwIf(duration_ns >= 0, 'my view') AS n FROM metaflow.spans_local",
	} {
		if err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t, s.grpc, 1)
	for range 5 {
		c.send(t.Context(), 100)
	}
	server.eventually(time.Minute, exactly(conn, 500))
	server.eventually(time.Minute, settled(addr))
	if err := exactly(conn, 500)(); err != nil {
		t.Error(err)
	}
	if n := metric(t, addr, "metaflow_writer_view_failures_total", ""); n == 0 {
		t.Error("the failing view was not reported")
	}
	if n := metric(t, addr, "metaflow_writer_dead_letters_total", ""); n != 0 {
		t.Errorf("%v dead letters", n)
	}
}

// Writers are suspended for longer than their session, at any point of their
// work, and resume when others own their partitions; and ClickHouse remembers
// hardly any token.
func TestWritersStoppedAndContinued(t *testing.T) {
	s := newSite(t, "")
	gateway, gatewayAddr := s.serve("gateway")
	first, firstAddr := s.serve("writer")
	second, _ := s.serve("writer")
	ready(gateway, gatewayAddr)
	ready(first, firstAddr)
	conn := open(t, s.engine.NativeAddr())
	if err := conn.Exec(t.Context(), "ALTER TABLE metaflow.spans_local MODIFY SETTING non_replicated_deduplication_window = 1"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	sent := make(chan int)
	go func() {
		c := newClient(t, s.grpc, 1)
		for ctx.Err() == nil {
			c.send(t.Context(), 20)
		}
		sent <- c.sent
	}()
	for i := range 4 {
		stopped := []*process{first, second}[i%2]
		_ = stopped.cmd.Process.Signal(syscall.SIGSTOP)
		<-time.After(8 * time.Second) // the session ends after 6
		_ = stopped.cmd.Process.Signal(syscall.SIGCONT)
		<-time.After(time.Second)
	}
	stop()
	want := <-sent
	first.eventually(2*time.Minute, func() error {
		rows, _, err := stored(conn)
		if err == nil && rows < uint64(want) {
			err = fmt.Errorf("%d of %d spans stored", rows, want)
		}
		return err
	})
	first.eventually(time.Minute, settled(firstAddr))
	if err := exactly(conn, want)(); err != nil {
		t.Error(err)
	}
	t.Logf("%d spans", want)
}

// An operator's own column cannot be computed for some rows, and ClickHouse's
// error does not blame their values. The other rows are stored.
func TestDefaultThatFailsForSomeRows(t *testing.T) {
	s := newSite(t, "")
	server, addr := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())
	const column = "ADD COLUMN mine UInt16 MATERIALIZED toUInt16(if(service_name = 'cartservice', '', '1'))"
	if err := conn.Exec(t.Context(), "ALTER TABLE metaflow.spans_local "+column); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, s.grpc, 1)
	c.send(t.Context(), 300)
	server.eventually(time.Minute, func() error {
		diverted := int(metric(t, addr, "metaflow_writer_spans_diverted_total", ""))
		if diverted == 0 || diverted == c.sent {
			return fmt.Errorf("%d spans diverted", diverted)
		}
		return exactly(conn, c.sent-diverted)()
	})
}

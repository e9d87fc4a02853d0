package broker_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafkago "github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// helperDir makes the test binary run the broker of a data directory until it is killed.
const helperDir = "METAFLOW_TEST_BROKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		helper(dir)
	}
	goleak.VerifyTestMain(m)
}

func helper(dir string) {
	b, err := broker.Start(broker.Options{Listen: "127.0.0.1:0", DataDir: dir})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(b.Addr())
	select {}
}

const (
	topic = "metaflow.test"
	noise = "metaflow.noise"
)

// client returns a client with its own connections, which close with the test.
func client(t *testing.T, addr string) *kafkago.Client {
	t.Helper()
	transport := &kafkago.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafkago.Client{Addr: kafkago.TCP(addr), Transport: transport, Timeout: wait.Patience}
}

func createTopic(t *testing.T, c *kafkago.Client) {
	t.Helper()
	res, err := c.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{
		Topics: []kafkago.TopicConfig{
			{Topic: topic, NumPartitions: 1, ReplicationFactor: 1},
			{Topic: noise, NumPartitions: 1, ReplicationFactor: 1},
		},
	})
	if err != nil || res.Errors[topic] != nil || res.Errors[noise] != nil {
		t.Fatal(err, res)
	}
}

func produce(t *testing.T, c *kafkago.Client, value string) {
	t.Helper()
	res, err := c.Produce(t.Context(), &kafkago.ProduceRequest{
		Topic: topic, RequiredAcks: kafkago.RequireAll,
		Records: kafkago.NewRecordReader(kafkago.Record{Value: kafkago.NewBytes([]byte(value))}),
	})
	if err != nil || res.Error != nil {
		t.Fatal(err, res)
	}
}

// read returns the values in the topic.
func read(t *testing.T, c *kafkago.Client) []string {
	t.Helper()
	var all []string
	for {
		res, err := c.Fetch(t.Context(), &kafkago.FetchRequest{Topic: topic, Offset: int64(len(all)), MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 10 * time.Millisecond})
		if err != nil || res.Error != nil {
			t.Fatal(err, res.Error)
		}
		n := len(all)
		for {
			r, err := res.Records.ReadRecord()
			if err != nil {
				break
			}
			if r.Offset < int64(len(all)) {
				continue
			}
			value, err := kafkago.ReadAll(r.Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, string(value))
		}
		if len(all) == n {
			return all
		}
	}
}

func commit(t *testing.T, c *kafkago.Client, offset int64, metadata string) {
	t.Helper()
	res, err := c.OffsetCommit(t.Context(), &kafkago.OffsetCommitRequest{
		GroupID: "g", GenerationID: -1,
		Topics: map[string][]kafkago.OffsetCommit{topic: {{Offset: offset, Metadata: metadata}}},
	})
	if err != nil || res.Topics[topic][0].Error != nil {
		t.Fatal(err, res)
	}
}

func committed(t *testing.T, c *kafkago.Client) (int64, string) {
	t.Helper()
	res, err := c.OffsetFetch(t.Context(), &kafkago.OffsetFetchRequest{GroupID: "g", Topics: map[string][]int{topic: {0}}})
	if err != nil || res.Error != nil {
		t.Fatal(err, res)
	}
	p := res.Topics[topic][0]
	return p.CommittedOffset, p.Metadata
}

func start(t *testing.T, opts broker.Options) *broker.Broker {
	t.Helper()
	b, err := broker.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func checkContent(t *testing.T, c *kafkago.Client, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, read(t, c)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if offset, metadata := committed(t, c); offset != 1 || metadata != "plan" {
		t.Errorf("committed = %d, %q; want 1, plan", offset, metadata)
	}
}

func TestDataSurvivesRestart(t *testing.T) {
	for name, sync := range map[string]bool{"written when convenient": false, "synced": true} {
		t.Run(name, func(t *testing.T) {
			opts := broker.Options{Listen: "127.0.0.1:0", DataDir: filepath.Join(t.TempDir(), "made", "here"), SyncWrites: sync}
			first := start(t, opts)
			c := client(t, first.Addr())
			createTopic(t, c)
			produce(t, c, "one")
			produce(t, c, "two")
			commit(t, c, 1, "plan")
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			second := start(t, opts)
			c = client(t, second.Addr())
			checkContent(t, c, []string{"one", "two"})
			produce(t, c, "three")
			checkContent(t, c, []string{"one", "two", "three"})
		})
	}
}

// Acknowledged records and committed offsets survive a kill in the middle of writing.
func TestDataSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), helperDir+"="+dir)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(stdout).ReadString('\n')
		addr := strings.TrimSpace(line)
		if err != nil || strings.HasPrefix(addr, "error") {
			t.Fatal(err, addr)
		}
		c := client(t, addr)
		if round == 0 {
			createTopic(t, c)
			commit(t, c, 1, "plan")
		}
		for i := range 50 {
			value := fmt.Sprintf("round %d, record %d", round, i)
			produce(t, c, value)
			want = append(want, value)
		}
		// A client is still writing when the broker dies; half a record may remain.
		written, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				_, err := c.Produce(t.Context(), &kafkago.ProduceRequest{
					Topic: noise, RequiredAcks: kafkago.RequireAll,
					Records: kafkago.NewRecordReader(kafkago.Record{Value: kafkago.NewBytes(make([]byte, 100_000))}),
				})
				if i == 5 {
					close(written)
				}
				if err != nil {
					return
				}
			}
		}()
		<-written
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		<-stopped
	}
	checkContent(t, client(t, start(t, broker.Options{Listen: "127.0.0.1:0", DataDir: dir}).Addr()), want)
}

func TestStartRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	used := t.TempDir()
	start(t, broker.Options{Listen: "127.0.0.1:0", DataDir: used})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		opts broker.Options
		want []string
	}{
		"port taken":             {broker.Options{Listen: taken.Addr().String()}, []string{taken.Addr().String(), "the port is in use"}},
		"directory in use":       {broker.Options{Listen: "127.0.0.1:0", DataDir: used}, []string{used, "another process uses it"}},
		"directory is a file":    {broker.Options{Listen: "127.0.0.1:0", DataDir: file}, []string{file}},
		"address makes no sense": {broker.Options{Listen: "nowhere"}, []string{"nowhere"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := broker.Start(tc.opts)
			if err == nil {
				_ = b.Close()
				t.Fatal("Start succeeded")
			}
			for _, word := range tc.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %q does not say %q", err, word)
				}
			}
		})
	}
}

func TestTopicsAreNotCreatedByMention(t *testing.T) {
	c := client(t, start(t, broker.Options{Listen: "127.0.0.1:0"}).Addr())
	res, err := c.Metadata(t.Context(), &kafkago.MetadataRequest{Topics: []string{"nobody.made.this"}})
	if err != nil {
		t.Fatal(err)
	}
	if res.Topics[0].Error == nil {
		t.Error("a request for metadata created the topic")
	}
}

// BenchmarkProduce measures the cost of SyncWrites: batches of 64 KiB, one after another.
func BenchmarkProduce(b *testing.B) {
	for name, sync := range map[string]bool{"written": false, "synced": true} {
		b.Run(name, func(b *testing.B) {
			kafka, err := broker.Start(broker.Options{Listen: "127.0.0.1:0", DataDir: b.TempDir(), SyncWrites: sync})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = kafka.Close() }()
			transport := &kafkago.Transport{}
			defer transport.CloseIdleConnections()
			c := &kafkago.Client{Addr: kafkago.TCP(kafka.Addr()), Transport: transport, Timeout: wait.Patience}
			created, err := c.CreateTopics(b.Context(), &kafkago.CreateTopicsRequest{
				Topics: []kafkago.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}},
			})
			if err != nil || created.Errors[topic] != nil {
				b.Fatal(err, created)
			}
			value := make([]byte, 64<<10)
			b.SetBytes(int64(len(value)))
			for b.Loop() {
				res, err := c.Produce(b.Context(), &kafkago.ProduceRequest{
					Topic: topic, RequiredAcks: kafkago.RequireAll,
					Records: kafkago.NewRecordReader(kafkago.Record{Value: kafkago.NewBytes(value)}),
				})
				if err != nil || res.Error != nil {
					b.Fatal(err, res)
				}
			}
		})
	}
}

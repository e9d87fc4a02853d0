package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// refuse answers the next times produce requests with err, or all if times is negative,
// and counts them. It stores no records.
func refuse(cluster *kfake.Cluster, err *kerr.Error, times int) *atomic.Int32 {
	var count atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if n := count.Add(1); times >= 0 && int(n) > times {
			return nil, nil, false
		}
		return produceAnswer(req.(*kmsg.ProduceRequest), err), nil, true
	})
	return &count
}

func produceAnswer(req *kmsg.ProduceRequest, err *kerr.Error) *kmsg.ProduceResponse {
	res := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, rt := range req.Topics {
		st := kmsg.NewProduceResponseTopic()
		st.Topic = rt.Topic
		for _, rp := range rt.Partitions {
			sp := kmsg.NewProduceResponseTopicPartition()
			sp.Partition, sp.ErrorCode = rp.Partition, err.Code
			st.Partitions = append(st.Partitions, sp)
		}
		res.Topics = append(res.Topics, st)
	}
	return res
}

func TestProduceRetries(t *testing.T) {
	for _, refusal := range []*kerr.Error{
		kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut,
		kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.UnknownTopicOrPartition, kerr.CorruptMessage,
	} {
		t.Run(refusal.Message, func(t *testing.T) {
			cluster := startCluster(t)
			client := newClient(t, cluster, nil)
			createTopic(t, client, 2)
			producer := startProducer(t, client, kafka.ProducerOptions{})
			count := refuse(cluster, refusal, 2)
			if err := producer.Produce(t.Context(), append(numbered(0, "a", 3), numbered(1, "b", 2)...)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"a-0", "a-1", "a-2"}, values(readAll(t, client, 0, 0))); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
			if count.Load() < 3 {
				t.Errorf("%d requests, want at least 3", count.Load())
			}
		})
	}
}

// Whatever Kafka refuses depends on its configuration, policy, clock or permissions. So
// the error is never the records' fault, and callers get it at once.
func TestProduceReportsPermanentErrorsAtOnce(t *testing.T) {
	for _, refusal := range []*kerr.Error{
		kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp, kerr.InvalidConfig,
		kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.PolicyViolation,
		kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType, kerr.InvalidRequiredAcks, kerr.InvalidTopicException,
	} {
		t.Run(refusal.Message, func(t *testing.T) {
			cluster := startCluster(t)
			client := newClient(t, cluster, nil)
			createTopic(t, client, 1)
			producer := startProducer(t, client, kafka.ProducerOptions{})
			count := refuse(cluster, refusal, -1)
			err := producer.Produce(t.Context(), numbered(0, "a", 1))
			if !errors.Is(err, kafkago.Error(refusal.Code)) || fault.ClassOf(err) != fault.Retryable {
				t.Errorf("Produce = %v, class %s; want %v, class retryable", err, fault.ClassOf(err), refusal)
			}
			if size := refusal == kerr.MessageTooLarge || refusal == kerr.RecordListTooLarge; errors.Is(err, kafka.ErrTooLarge) != size {
				t.Errorf("Produce = %v; is it an ErrTooLarge? want %v", err, size)
			}
			if count.Load() != 1 {
				t.Errorf("%d requests, want 1", count.Load())
			}
		})
	}
}

// A batch that is too large is split. Only a record that is too large by itself is
// refused, not the others in its batch.
func TestTooLargeBatchIsSplit(t *testing.T) {
	cluster := startCluster(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "1000"}))
	client := newClient(t, cluster, func(c *kafka.Config) { c.Compression = "none" })
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	batch := make([]kafka.Outgoing, 0, 20)
	want := make([]string, 0, 20)
	for i := range 20 {
		value := strings.Repeat(string(rune('a'+i)), 300)
		want = append(want, value)
		batch = append(batch, kafka.Outgoing{Value: []byte(value)})
	}
	if err := producer.Produce(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, values(readAll(t, client, 0, 0))); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}

	huge := kafka.Outgoing{Value: make([]byte, 2000)}
	err := producer.Produce(t.Context(), []kafka.Outgoing{{Value: []byte("before")}, huge, {Value: []byte("after")}})
	var large *kafka.TooLargeError
	if !errors.As(err, &large) || !slices.Equal(large.Records, []int{1}) {
		t.Errorf("Produce with a huge record = %v, want a TooLargeError of record 1", err)
	}
	if diff := cmp.Diff(append(want, "before", "after"), values(readAll(t, client, 0, 0))); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}

// While a broker is down, Produce returns in time and keeps nothing. When the broker is
// back, records arrive, those of each call in order.
func TestBrokerDownAndBack(t *testing.T) {
	dir, port := t.TempDir(), ports.Free(t)
	first, err := kfake.NewCluster(kfake.Ports(port), kfake.DataDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	client := newClient(t, first, func(c *kafka.Config) { c.ProduceTimeout = 10 * time.Second })
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	if err := producer.Produce(t.Context(), numbered(0, "before", 2)); err != nil {
		t.Fatal(err)
	}
	first.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := producer.Produce(ctx, numbered(0, "lost", 1)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Produce without a broker = %v, want the deadline", err)
			}
		})
	}
	wg.Wait()
	if n := producer.Held(); n != 0 {
		t.Errorf("%d records are still held after their callers left", n)
	}

	patient := make(chan error, 1)
	go func() { patient <- producer.Produce(t.Context(), numbered(0, "patient", 3)) }()
	second, err := kfake.NewCluster(kfake.Ports(port), kfake.DataDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := <-patient; err != nil {
		t.Fatal(err)
	}
	want := []string{"before-0", "before-1", "patient-0", "patient-1", "patient-2"}
	if diff := cmp.Diff(want, values(readAll(t, client, 0, 0))); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
}

// After Produce has returned, with whatever result, nothing reads the caller's bytes. The
// race detector verifies this.
func TestBytesAreTheCallersAfterReturn(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 3)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	var n atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if n.Add(1)%3 == 0 {
			return produceAnswer(req.(*kmsg.ProduceRequest), kerr.RequestTimedOut), nil, true
		}
		return nil, nil, false
	})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			value := make([]byte, 64<<10)
			for range 30 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(3000))*time.Microsecond)
				_ = producer.Produce(ctx, []kafka.Outgoing{{Partition: random.IntN(3), Value: value}})
				cancel()
				for i := range value {
					value[i]++
				}
			}
		})
	}
	wg.Wait()
}

// A record that did not fit into the request before is not sent once its caller has left:
// its bytes may be others by then.
func TestRecordsThatWaitForRoomAreTheCallers(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 2)
	producer := startProducer(t, client, kafka.ProducerOptions{InFlight: 1})
	arrived, goOn := make(chan struct{}, 100), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { arrived <- struct{}{}; <-goOn })
		return nil, nil, false
	})
	produce := func(ctx context.Context, partition int, value []byte) <-chan error {
		held, done := producer.Held(), make(chan error, 1)
		go func() { done <- producer.Produce(ctx, []kafka.Outgoing{{Partition: partition, Value: value}}) }()
		wait.Until(t, "the record waits", func() bool { return producer.Held() == held+1 })
		return done
	}
	first := make(chan error, 1)
	go func() { first <- producer.Produce(t.Context(), []kafka.Outgoing{{Partition: 0, Value: []byte("-")}}) }()
	<-arrived
	large := produce(t.Context(), 0, bytes.Repeat([]byte("A"), 200_000))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	taken := bytes.Repeat([]byte("B"), 100_000)
	left := produce(ctx, 1, taken)
	stays := produce(t.Context(), 1, bytes.Repeat([]byte("C"), 100_000))
	goOn <- struct{}{}
	<-arrived // the large record, beside which there was no room
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("Produce = %v", err)
	}
	copy(taken, bytes.Repeat([]byte("X"), len(taken)))
	close(goOn)
	for _, done := range []<-chan error{first, large, stays} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, r := range readAll(t, client, 1, 0) {
		if r.Value[0] != 'C' {
			t.Errorf("the log has a record of %d bytes that begins with %q", len(r.Value), r.Value[:1])
		}
	}
}

// Concurrent calls share batches, and the records of each call stay in order.
func TestConcurrentCallsShareBatches(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 4)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	var requests atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		requests.Add(1)
		return nil, nil, false
	})
	const workers, calls = 32, 20
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for i := range calls {
				var batch []kafka.Outgoing
				for p := range 4 {
					batch = append(batch, kafka.Outgoing{Partition: p, Value: fmt.Appendf(nil, "%d %d", worker, i)})
				}
				if err := producer.Produce(t.Context(), batch); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for p := range 4 {
		next := map[int]int{}
		records := readAll(t, client, p, 0)
		for _, r := range records {
			var worker, i int
			if _, err := fmt.Sscan(string(r.Value), &worker, &i); err != nil {
				t.Fatal(err)
			}
			if i != next[worker] {
				t.Fatalf("partition %d: worker %d's call %d follows %d", p, worker, i, next[worker]-1)
			}
			next[worker]++
		}
		if len(records) != workers*calls {
			t.Errorf("partition %d has %d records, want %d", p, len(records), workers*calls)
		}
	}
	t.Logf("%d requests for %d records", requests.Load(), workers*calls*4)
	if int(requests.Load()) > workers*calls {
		t.Errorf("%d requests for %d calls: they do not share", requests.Load(), workers*calls)
	}
}

func TestStoppedProducerRefuses(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	createTopic(t, client, 1)
	producer := client.NewProducer(topic, kafka.ProducerOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := producer.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := producer.Produce(t.Context(), numbered(0, "a", 1)); !errors.Is(err, kafka.ErrStopped) {
		t.Errorf("Produce after Run = %v, want ErrStopped", err)
	}
}

func TestUnknownPartitionAndTopic(t *testing.T) {
	client := newClient(t, startCluster(t), func(c *kafka.Config) { c.ProduceTimeout = 2 * time.Second })
	producer := startProducer(t, client, kafka.ProducerOptions{})
	if err := producer.Produce(t.Context(), numbered(0, "a", 1)); !errors.Is(err, kafkago.UnknownTopicOrPartition) {
		t.Errorf("Produce to an unknown topic = %v", err)
	}
	createTopic(t, client, 1)
	// Until the new topic has been looked up, the cause is that it does not exist.
	if err := producer.Produce(t.Context(), numbered(1, "a", 1)); err == nil || !strings.Contains(err.Error(), "does not exist") && !strings.Contains(err.Error(), "no such partition") {
		t.Errorf("Produce to an unknown partition = %v", err)
	}
	if err := producer.Produce(t.Context(), numbered(-1, "a", 1)); err == nil || !strings.Contains(err.Error(), "no partition -1") {
		t.Errorf("Produce to partition -1 = %v", err)
	}
	if err := producer.Produce(t.Context(), numbered(0, "a", 1)); err != nil {
		t.Errorf("Produce after all that = %v", err)
	}
}

// A throttling broker has stored what it acknowledged. It gets no requests until it reads
// again.
func TestQuotaIsNoError(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	const quota = 500 * time.Millisecond
	var count atomic.Int32
	var throttled, next time.Time
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if count.Add(1) > 1 {
			next = time.Now()
			return nil, nil, false
		}
		throttled = time.Now()
		res := produceAnswer(req.(*kmsg.ProduceRequest), &kerr.Error{})
		res.ThrottleMillis = int32(quota.Milliseconds())
		return res, nil, true
	})
	if err := producer.Produce(t.Context(), numbered(0, "a", 1)); err != nil {
		t.Errorf("Produce that is throttled = %v", err)
	}
	if err := producer.Produce(t.Context(), numbered(0, "b", 1)); err != nil {
		t.Errorf("Produce after it = %v", err)
	}
	if took := next.Sub(throttled); took < quota/2 {
		t.Errorf("the next request went out after %s, want about %s", took, quota)
	}
	if count.Load() != 2 {
		t.Errorf("%d requests, want 2", count.Load())
	}
}

// Kafka answers a request no more, and records wait behind it. Once they have waited for half of the timeout, further
// calls are refused at once and nothing of them is sent; before that, and after Kafka goes on, they are not.
func TestProducerThatIsBehindRefuses(t *testing.T) {
	const timeout = 4 * time.Second
	cluster := startCluster(t)
	client := newClient(t, cluster, func(c *kafka.Config) { c.ProduceTimeout = timeout })
	createTopic(t, client, 2)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	held, goOn := make(chan struct{}, 1), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		select {
		case held <- struct{}{}:
		default:
		}
		cluster.SleepControl(func() { <-goOn })
		return nil, nil, false
	})
	calls := make(chan error, 2)
	go func() { calls <- producer.Produce(t.Context(), numbered(0, "first", 1)) }()
	<-held
	begun := time.Now()
	go func() { calls <- producer.Produce(t.Context(), numbered(0, "second", 1)) }()

	var behind *kafka.BehindError
	for !errors.As(tryOnce(t, producer, numbered(0, "refused", 1)), &behind) {
		if time.Since(begun) > timeout {
			t.Fatal("no call was refused")
		}
	}
	if waited := time.Since(begun); waited < timeout/2 || !strings.Contains(behind.Error(), "records of partition 0 wait for 2") {
		t.Errorf("after %s: %v, want that after %s", waited, behind, timeout/2)
	}
	if err := tryOnce(t, producer, numbered(1, "other", 1)); errors.As(err, &behind) {
		t.Errorf("Produce to another partition = %v", err)
	}
	close(goOn)
	for range 2 {
		if err := <-calls; err != nil {
			t.Errorf("Produce = %v", err)
		}
	}
	if err := producer.Produce(t.Context(), numbered(0, "third", 1)); err != nil {
		t.Errorf("Produce after Kafka went on = %v", err)
	}
	var values []string
	for _, rec := range readAll(t, client, 0, 0) {
		values = append(values, string(rec.Value))
	}
	if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "refused") }) {
		t.Errorf("the log holds %q", values)
	}
}

// tryOnce calls Produce and waits for a moment only.
func tryOnce(t *testing.T, producer *kafka.Producer, batch []kafka.Outgoing) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	return producer.Produce(ctx, batch)
}

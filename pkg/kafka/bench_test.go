package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// benchSpans is the number of spans in a record: a request of 720 over 12 partitions.
const benchSpans = 60

// benchRecords returns records of WebStore-like spans, all different.
func benchRecords(seed uint64, n, partitions int) []Outgoing {
	g := otlptest.New(seed, otlptest.Options{})
	batch := make([]Outgoing, n)
	for i := range batch {
		value := g.RequestBytes(benchSpans)
		meta := delivery.Meta{Agent: "node-1", Received: time.Unix(1, 2), Hash: delivery.HashOf(value), HasHash: true}
		batch[i] = Outgoing{Partition: i % partitions, Value: value, Headers: meta.Headers()}
	}
	return batch
}

// benchCalls returns the batches of n calls of Produce, 12 records each.
func benchCalls(n int) (calls [][]Outgoing, bytesPerCall int64) {
	all := benchRecords(1, n*benchPartitions, benchPartitions)
	for i := range n {
		calls = append(calls, all[i*benchPartitions:(i+1)*benchPartitions])
	}
	return calls, sizeOf(all) / int64(n)
}

const benchPartitions = 12

func sizeOf(batch []Outgoing) int64 {
	var size int64
	for i := range batch {
		size += int64(len(batch[i].Value))
	}
	return size
}

func entriesOf(batch []Outgoing) []entry {
	entries := make([]entry, len(batch))
	for i := range batch {
		entries[i].out = &batch[i]
	}
	return entries
}

// reportSpans reports CPU time per span, of all threads.
func reportSpans(b *testing.B, spans int, cpu time.Duration) {
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/float64(b.N*spans), "cpu-us/span")
	b.ReportMetric(float64(b.N*spans)/b.Elapsed().Seconds(), "spans/s")
}

// BenchmarkEncode builds batches of one record, as under low traffic, and of 20.
func BenchmarkEncode(b *testing.B) {
	for _, compression := range []string{"none", "snappy", "lz4", "zstd", "gzip"} {
		for _, records := range []int{1, 20} {
			b.Run(fmt.Sprintf("%s/records=%d", compression, records), func(b *testing.B) {
				codec, err := codecByName(compression)
				if err != nil {
					b.Fatal(err)
				}
				batch := benchRecords(1, records, 1)
				entries := entriesOf(batch)
				e := encoder{codec: codec}
				var out []byte
				b.SetBytes(sizeOf(batch))
				b.ReportAllocs()
				begun := cputime.Used(b)
				for b.Loop() {
					out = e.appendBatch(out[:0], entries, testTime)
				}
				reportSpans(b, records*benchSpans, cputime.Used(b)-begun)
				b.ReportMetric(float64(sizeOf(batch))/float64(len(out)), "ratio")
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, compression := range []string{"none", "snappy", "lz4", "zstd", "gzip"} {
		b.Run(compression, func(b *testing.B) {
			codec, err := codecByName(compression)
			if err != nil {
				b.Fatal(err)
			}
			const records = 20
			e := encoder{codec: codec}
			batch := benchRecords(1, records, 1)
			data := e.appendBatch(nil, entriesOf(batch), testTime)
			var d decoder
			b.SetBytes(sizeOf(batch))
			b.ReportAllocs()
			begun := cputime.Used(b)
			for b.Loop() {
				if got, err := d.decode(data, 0); err != nil || len(got.Records) != records {
					b.Fatal(len(got.Records), err)
				}
			}
			reportSpans(b, records*benchSpans, cputime.Used(b)-begun)
		})
	}
}

// benchCluster runs an in-memory broker in this process, so its CPU time is measured as
// well.
func benchCluster(b *testing.B, partitions int) (*Client, func()) {
	b.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(int32(partitions), "bench"))
	if err != nil {
		b.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Brokers = cluster.ListenAddrs()
	client, err := New(cfg, Options{})
	if err != nil {
		b.Fatal(err)
	}
	return client, func() {
		client.Close()
		cluster.Close()
	}
}

// BenchmarkProduce runs callers that each wait for 12 records, the records of one request
// of 720 spans. The broker runs in the same process, so its CPU time is included. The
// last case is the library's own producer under the same load.
func BenchmarkProduce(b *testing.B) {
	calls, size := benchCalls(64)
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			client, stop := benchCluster(b, benchPartitions)
			defer stop()
			producer := client.NewProducer("bench", ProducerOptions{})
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- producer.Run(ctx) }()
			benchProduce(b, callers, size, func(i int) error { return producer.Produce(ctx, calls[i%len(calls)]) })
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
	b.Run("library/callers=64", func(b *testing.B) {
		client, stop := benchCluster(b, benchPartitions)
		defer stop()
		w := &kafkago.Writer{
			Addr: client.addr, Topic: "bench", Transport: client.transport, RequiredAcks: kafkago.RequireAll,
			Compression: kafkago.Lz4, BatchTimeout: time.Millisecond, BatchSize: 1000,
			Balancer: kafkago.BalancerFunc(func(m kafkago.Message, _ ...int) int { return int(m.Key[0]) }),
		}
		messages := make([][]kafkago.Message, len(calls))
		for i, call := range calls {
			for _, o := range call {
				m := kafkago.Message{Key: []byte{byte(o.Partition)}, Value: o.Value}
				for _, h := range o.Headers {
					m.Headers = append(m.Headers, kafkago.Header(h))
				}
				messages[i] = append(messages[i], m)
			}
		}
		benchProduce(b, 64, size, func(i int) error { return w.WriteMessages(b.Context(), messages[i%len(messages)]...) })
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

// benchProduce divides b.N calls among callers.
func benchProduce(b *testing.B, callers int, size int64, call func(i int) error) {
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	begun := cputime.Used(b)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := c; i < b.N; i += callers {
				if err := call(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	reportSpans(b, benchPartitions*benchSpans, cputime.Used(b)-begun)
}

// BenchmarkFetch reads a full log repeatedly, 1 MiB at a time. The broker runs in the
// same process.
func BenchmarkFetch(b *testing.B) {
	client, stop := benchCluster(b, 1)
	defer stop()
	producer := client.NewProducer("bench", ProducerOptions{})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- producer.Run(ctx) }()
	const records = 2000
	all := benchRecords(1, records, 1)
	for i := 0; i < records; i += 20 {
		if err := producer.Produce(ctx, all[i:i+20]); err != nil {
			b.Fatal(err)
		}
	}
	size := sizeOf(all)
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		f := newFetcher(client, "bench", 0)
		benchFetch(b, records, size, func(offset int64) (int64, int) {
			batch, err := f.fetch(b.Context(), offset, 1, 1<<20, time.Second)
			if err != nil {
				b.Fatal(err)
			}
			return batch.Next, len(batch.Records)
		})
	})
	b.Run("library", func(b *testing.B) {
		c := kafkago.Client{Addr: client.addr, Transport: client.transport}
		benchFetch(b, records, size, func(offset int64) (int64, int) {
			res, err := c.Fetch(b.Context(), &kafkago.FetchRequest{Topic: "bench", Offset: offset, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: time.Second})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for {
				r, err := res.Records.ReadRecord()
				if err != nil {
					return offset, n
				}
				if _, err := kafkago.ReadAll(r.Value); err != nil {
					b.Fatal(err)
				}
				offset = r.Offset + 1
				n++
			}
		})
	})
}

func benchFetch(b *testing.B, records int, size int64, fetch func(offset int64) (next int64, n int)) {
	b.SetBytes(size)
	b.ReportAllocs()
	begun := cputime.Used(b)
	for b.Loop() {
		total := 0
		for offset := int64(0); offset < int64(records); {
			next, n := fetch(offset)
			offset, total = next, total+n
		}
		if total != records {
			b.Fatal(total)
		}
	}
	reportSpans(b, records*benchSpans, cputime.Used(b)-begun)
}

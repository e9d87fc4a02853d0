package integration

import (
	"encoding/binary"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
)

// Times are judged by the first receipt. Spans that waited eight days in a
// spool are stored, a dead letter of ten days is replayed, and a record whose
// Kafka timestamp is 0 loses no span.
func TestTimesAreJudgedByFirstReceipt(t *testing.T) {
	const day = 24 * time.Hour
	s := newSite(t, "")
	server, _ := s.serveReady("gateway,writer")
	conn := open(t, s.engine.NativeAddr())

	spooled := newClient(t, s.grpc, 1)
	received := time.Now().Add(-8 * day)
	spooled.gen = otlptest.New(1, otlptest.Options{Start: received.Add(-time.Minute)})
	spooled.send(metadata.AppendToOutgoingContext(t.Context(), schema.MetadataAgent, "node-1", schema.MetadataResend, "1",
		schema.MetadataReceived, strconv.FormatInt(received.UnixNano(), 10)), 100)
	server.eventually(time.Minute, exactly(conn, 100))

	kafka, err := kgo.NewClient(kgo.SeedBrokers(s.kafkaAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	timeless := &kgo.Record{
		Topic: schema.TopicSpans, Timestamp: time.UnixMilli(0),
		Value: otlptest.New(2, otlptest.Options{Start: time.Now().Add(-time.Minute)}).RequestBytes(50),
	}
	diverted := time.Now().Add(-10 * day)
	letter := &kgo.Record{
		Topic: schema.TopicDeadLetter, Timestamp: diverted,
		Value: otlptest.New(3, otlptest.Options{Start: diverted.Add(-time.Minute)}).RequestBytes(30),
		Headers: []kgo.RecordHeader{
			{Key: schema.HeaderTopic, Value: []byte(schema.TopicSpans)},
			{Key: schema.HeaderReceived, Value: binary.BigEndian.AppendUint64(nil, uint64(diverted.UnixNano()))},
		},
	}
	if err := kafka.ProduceSync(t.Context(), timeless, letter).FirstErr(); err != nil {
		t.Fatal(err)
	}
	server.eventually(time.Minute, exactly(conn, 150))
	for range 2 {
		run(t, "deadletter", "replay", "--config", s.config, "--again")
		server.eventually(time.Minute, exactly(conn, 180))
	}
	if list := run(t, "deadletter", "list", "--config", s.config, "--all"); !strings.Contains(list, "1 dead letter\n") {
		t.Errorf("letters other than the existing one:\n%s", list)
	}
}

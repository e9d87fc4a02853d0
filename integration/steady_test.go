package integration

import (
	"context"
	"testing"
	"time"
)

// A thousand spans a second over 48 partitions: a writer stores what all of its partitions have in
// one INSERT about every max_batch_wait, and not one for each partition.
func TestInsertsDoNotGrowWithPartitions(t *testing.T) {
	const perSecond, requestSpans, seconds = 1_000, 100, 8
	t.Setenv("METAFLOW_KAFKA_PARTITIONS", "48")
	t.Setenv("METAFLOW_WRITER_MAX_BATCH_WAIT", "1s")
	s := newSite(t, "")
	server, addr := s.serve("gateway,writer")
	ready(server, addr)
	server.eventually(time.Minute, func() error { return settled(addr)() })
	c := newClient(t, s.grpc, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	inserts := func() float64 { return metric(t, addr, "metaflow_writer_batch_rows_count", `signal="traces"`) }
	before := inserts()
	begun := time.Now()
	ticks := time.NewTicker(time.Second * requestSpans / perSecond)
	defer ticks.Stop()
	for range seconds * perSecond / requestSpans {
		<-ticks.C
		c.send(ctx, requestSpans)
	}
	conn := open(t, s.engine.NativeAddr())
	server.eventually(time.Minute, exactly(conn, c.sent))
	took := time.Since(begun).Seconds()
	n := inserts() - before
	together := metric(t, addr, "metaflow_writer_batch_partitions_sum", `signal="traces"`) /
		metric(t, addr, "metaflow_writer_batch_partitions_count", `signal="traces"`)
	t.Logf("%.0f INSERTs in %.1f s, of %.0f spans and %.0f partitions each", n, took, float64(c.sent)/n, together)
	// Storing that takes long makes the ticks closer to each other, down to half a second.
	if n > 3*took+5 { // each of 15 partitions alone would make ten times as many
		t.Errorf("%.0f INSERTs in %.1f s", n, took)
	}
	// Half a second brings rows for some fifteen of the 48 partitions.
	if together < 6 {
		t.Errorf("%.1f partitions in an INSERT", together)
	}
}

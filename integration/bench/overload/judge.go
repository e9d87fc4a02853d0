package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/chain"
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// figures are what a run shows.
type figures struct {
	sustainable float64 // spans a second
	during      counts
	recovered   time.Duration
	stored      outcome
	idle        int64   // bytes of the gateway before any request
	inFlight    float64 // the most bytes in flight
}

// outcome compares what was accepted with what is stored.
type outcome struct {
	accepted, lost, twice int // spans
	took                  time.Duration
}

// metric returns the sum of a metric's series at the gateway, 0 if it cannot be read.
func (s *site) metric(ctx context.Context, name string) float64 {
	var metrics strings.Builder
	if chain.Get(ctx, "http://"+s.gatewayOps+"/metrics", &metrics) != nil {
		return 0
	}
	sum, _ := prom.Sum(metrics.String(), name, "")
	return sum
}

// watch returns the most bytes that were in flight until ctx ends.
func (s *site) watch(ctx context.Context) (most float64) {
	for retry.Sleep(ctx, 500*time.Millisecond) == nil {
		most = max(most, s.metric(ctx, "metaflow_gateway_bytes_in_flight"))
	}
	return most
}

// line is what the gateway has done with the way to Kafka.
type line struct {
	sent         float64 // compressed bytes, repeated ones included
	acknowledged float64 // bytes before compression
	errors       float64 // batches
}

func (s *site) line(ctx context.Context) line {
	return line{
		s.metric(ctx, "metaflow_kafka_sent_bytes_total"), s.metric(ctx, "metaflow_kafka_produced_bytes_total"), s.metric(ctx, "metaflow_kafka_produce_errors_total"),
	}
}

func (l line) minus(b line) line {
	return line{l.sent - b.sent, l.acknowledged - b.acknowledged, l.errors - b.errors}
}

func (l line) describe(rate float64, d time.Duration) string {
	return fmt.Sprintf("%.0f%% used, %.1f bytes acknowledged for each byte sent, %.0f batches not acknowledged", 100*l.sent/(rate*d.Seconds()), l.acknowledged/l.sent, l.errors)
}

// stored waits until all that was accepted is stored.
func (s *site) stored(ctx context.Context, l *load) (o outcome, err error) {
	begun := time.Now()
	for {
		if o, err = s.compare(ctx, l); err != nil || o.lost == 0 || time.Since(begun) > 5*time.Minute {
			o.took = time.Since(begun)
			return o, err
		}
		if retry.Sleep(ctx, time.Second) != nil {
			return o, ctx.Err()
		}
	}
}

func (s *site) compare(ctx context.Context, l *load) (o outcome, err error) {
	rows, err := s.clickhouse.Conn.Query(ctx, fmt.Sprintf(
		"SELECT bitShiftRight(reinterpretAsUInt64(reverse(unhex(span_id))), %d) AS request, count(), uniqExact(span_id) FROM metaflow.spans_local GROUP BY request", itemBits))
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	ids := make(map[uint64]uint64)
	for rows.Next() {
		var number, n, distinct uint64
		if err := rows.Scan(&number, &n, &distinct); err != nil {
			return o, err
		}
		ids[number] = distinct
		o.twice += int(n - distinct)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for number := range l.accepted {
		o.accepted += requestSpans
		o.lost += requestSpans - int(ids[number])
	}
	return o, rows.Err()
}

// Bounds of what a run may show, besides no span lost or stored twice and no refusal without a time to retry.
const (
	bytesInFlight = 2.5 // of memory for each byte in flight
	// writerBytes: writer.memory_bytes and flow_writer.memory_bytes, the same again for the collector of garbage, and 100 MiB for the rest.
	writerBytes = 2*192<<20 + 100<<20
	tolerance   = 0.1
	recovery    = 30 * time.Second
)

// report prints the figures, and returns an error if a bound is exceeded.
func (s *site) report(w io.Writer, f *figures) error {
	var errs []error
	row := func(what, bound, found string, ok bool) {
		fmt.Fprintf(w, "| %s | %s | %s |\n", what, bound, found)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s, want %s", what, found, bound))
		}
	}
	gateway, err1 := s.gateway.Usage()
	writer, err2 := s.writer.Usage()
	clickhouse, err3 := measured.UsageOf(s.clickhouse.PID())
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	const mib = 1 << 20
	d := &f.during
	fmt.Fprintf(w, "%.0f spans/s sustainable, %.1f times as many sent for %s: %d attempts, %d refused, %d without an answer in time, %d requests given up by senders\n\n",
		f.sustainable, s.times, s.duration, d.attempts, d.refused+d.refusedWithout, d.unanswered, d.givenUp)
	fmt.Fprintln(w, "| what | bound | measured |")
	fmt.Fprintln(w, "|---|---|---|")
	most := f.idle + int64(bytesInFlight*float64(s.inFlight))
	row("gateway, peak MiB", fmt.Sprintf("%d (idle, and %g for each byte of %d MiB in flight)", most/mib, bytesInFlight, s.inFlight/mib),
		fmt.Sprintf("%d, with at most %.0f MiB in flight", gateway.Peak/mib, f.inFlight/mib), gateway.Peak <= most)
	row("writer, peak MiB", strconv.Itoa(writerBytes/mib), strconv.FormatInt(writer.Peak/mib, 10), writer.Peak <= writerBytes)
	row("ClickHouse, peak MiB", strconv.Itoa(clickhouseMemory/mib), strconv.FormatInt(clickhouse.Peak/mib, 10), clickhouse.Peak <= clickhouseMemory)
	row("refusals with RetryInfo or Retry-After", "all", fmt.Sprintf("%d of %d %s", d.refused, d.refused+d.refusedWithout, d.firstUnknownRefusal), d.refusedWithout == 0 && d.refused > 0)
	share := d.rate() / f.sustainable
	row("accepted, of the sustainable rate", fmt.Sprintf("%.0f%% to %.0f%%", 100*(1-tolerance), 100*(1+tolerance)), fmt.Sprintf("%.0f%%", 100*share),
		share >= 1-tolerance && share <= 1+tolerance)
	row("accepted spans lost", "0", fmt.Sprintf("%d of %d", f.stored.lost, f.stored.accepted), f.stored.lost == 0)
	row("stored twice", "0", strconv.Itoa(f.stored.twice), f.stored.twice == 0)
	row("half the rate is accepted at once, after", recovery.String(), f.recovered.Round(100*time.Millisecond).String()+" (10s of them to see it)", f.recovered <= recovery)
	return errors.Join(errs...)
}

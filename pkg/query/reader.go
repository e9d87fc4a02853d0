package query

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Options are set by code. The zero value is usable.
type Options struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nothing
	Now        func() time.Time      // nil means time.Now
}

// Reader reads traces, edges and names. Create it with NewReader.
type Reader struct {
	cfg      Config
	db       DB
	database string
	log      *slog.Logger
	now      func() time.Time

	answers *Answers
	seconds *prometheus.HistogramVec
	without prometheus.Counter

	mu       sync.Mutex
	flows    bool      // some were stored; see hasFlows
	flowless time.Time // when none was stored
	view     string    // text of traces_network; see tracesNetwork
	viewRead time.Time // when it was read
}

// NewReader returns a Reader of a database. It starts nothing.
func NewReader(cfg Config, db DB, database string, opts Options) *Reader {
	r := &Reader{cfg: cfg, db: db, database: database, log: opts.Logger, now: opts.Now, answers: NewAnswers(cfg, opts.Registerer)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	f := promauto.With(opts.Registerer)
	r.seconds = f.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "metaflow", Subsystem: "query", Name: "seconds", Help: "Time of answers, by question.",
		Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30},
	}, []string{"question"})
	r.without = f.NewCounter(prometheus.CounterOpts{
		Namespace: "metaflow", Subsystem: "query", Name: "network_missing_total", Help: "Traces that were returned without what the network did, because it took too long or failed.",
	})
	return r
}

// Answers returns the bounds of what is answered from this Reader.
func (r *Reader) Answers() *Answers { return r.answers }

// observe starts to measure an answer. The caller calls the result at its end.
func (r *Reader) observe(question string) func() {
	start := time.Now()
	return func() { r.seconds.WithLabelValues(question).Observe(time.Since(start).Seconds()) }
}

// builder collects the arguments of a query.
type builder struct{ args []any }

// arg returns the placeholder of a value.
func (b *builder) arg(v any) string {
	b.args = append(b.args, v)
	return fmt.Sprintf("$%d", len(b.args))
}

// within returns conditions on start_time, each after " AND ". Both bounds are inclusive: the
// primary key has the hour, and what is before a full hour would include the next one.
func (b *builder) within(in Range) string { return b.withinOf("start_time", in) }

func (b *builder) withinOf(column string, in Range) string {
	var s strings.Builder
	if !in.Start.IsZero() {
		fmt.Fprintf(&s, " AND %s >= fromUnixTimestamp64Nano(%s)", column, b.arg(in.Start.UnixNano()))
	}
	if !in.End.IsZero() {
		fmt.Fprintf(&s, " AND %s <= fromUnixTimestamp64Nano(%s)", column, b.arg(in.End.UnixNano()-1))
	}
	return s.String()
}

// around returns a range that is longer at both ends.
func (r Range) around(d time.Duration) Range { return Range{r.Start.Add(-d), r.End.Add(d)} }

// bounded returns the range of a search: the last hour by default, and never longer than
// allowed.
func (r *Reader) bounded(in Range) (Range, error) {
	if in.End.IsZero() {
		in.End = r.now()
	}
	if in.Start.IsZero() {
		in.Start = in.End.Add(-time.Hour)
	}
	if !in.Start.Before(in.End) {
		return in, fmt.Errorf("%w: the range ends at %s and starts at %s", ErrBadRequest, in.End.UTC().Format(time.RFC3339), in.Start.UTC().Format(time.RFC3339))
	}
	if d := in.End.Sub(in.Start); d > r.cfg.MaxRange+time.Minute {
		return in, fmt.Errorf("%w: a range of %s is longer than query.max_range (%s)", ErrBadRequest, d.Round(time.Second), r.cfg.MaxRange)
	}
	return in, nil
}

package verify

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Options are set by code.
type Options struct {
	Sender   Sender
	Store    Store
	Logger   *slog.Logger // nil discards
	Progress func(Report) // called about once a second from one goroutine; nil is allowed
}

// Verifier runs one check. Create it with New.
type Verifier struct {
	cfg      Config
	sender   Sender
	store    Store
	log      *slog.Logger
	progress func(Report)
	maker    *maker

	mu     sync.Mutex
	ledger *ledger
	failed struct{ request, lookup string } // the last errors; "" after a success
}

// New validates cfg. It starts nothing.
func New(cfg Config, opts Options) (*Verifier, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := newMaker(hostname())
	return &Verifier{
		cfg: cfg, sender: opts.Sender, store: opts.Store, log: opts.Logger, progress: opts.Progress,
		maker: m, ledger: newLedger(cfg, m),
	}, nil
}

// Report returns what is known so far. It may be called at any time.
func (v *Verifier) Report() Report {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.ledger.current()
	r.Problem = v.failed.request
	if r.Problem == "" {
		r.Problem = v.failed.lookup
	}
	return r
}

// inFlight is how many requests wait for an answer at a time: a slow pipeline holds the
// rate back instead of piling up requests.
const inFlight = 4

// Run sends until the configured end, or until ctx ends, and then looks up what was sent
// until every span is decided. After the end of ctx it looks up for at most grace.
func (v *Verifier) Run(ctx context.Context, grace time.Duration) Report {
	looking, stopLooking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLooking()
	ended := context.AfterFunc(ctx, func() { time.AfterFunc(grace, stopLooking) })
	defer ended()

	sent := make(chan struct{})
	var work sync.WaitGroup
	interrupted := false
	work.Go(func() {
		defer close(sent)
		v.send(ctx)
		interrupted = ctx.Err() != nil && (v.cfg.Spans > 0 || v.cfg.Duration > 0)
	})
	work.Go(func() { v.lookUp(looking, sent) })
	if v.cfg.Keep > 0 {
		cleaning, stopCleaning := context.WithCancel(ctx)
		work.Go(func() { v.clean(cleaning, sent) })
		defer stopCleaning()
	}
	if v.progress != nil {
		watching, stopWatching := context.WithCancel(looking)
		var watch sync.WaitGroup
		watch.Go(func() { retry.Every(watching, time.Second, func() { v.progress(v.Report()) }) })
		defer watch.Wait()
		defer stopWatching()
	}
	work.Wait()
	last := v.Report()
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.ledger.close()
	r.Problem = last.Problem
	r.Interrupted = interrupted
	return r
}

// send makes requests at the configured rate.
func (v *Verifier) send(ctx context.Context) {
	if v.cfg.Duration > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, v.cfg.Duration)
		defer stop()
	}
	interval := time.Duration(float64(v.cfg.Batch) / v.cfg.Rate * float64(time.Second))
	places := make(chan struct{}, inFlight)
	var requests sync.WaitGroup
	defer requests.Wait()
	next := time.Now()
	var number uint64
	for left := v.cfg.Spans; ctx.Err() == nil; {
		n := v.cfg.Batch
		if v.cfg.Spans > 0 {
			n = min(n, left)
			if n == 0 {
				return
			}
			left -= n
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		for v.crowded() {
			if retry.Sleep(ctx, v.cfg.Poll) != nil {
				return
			}
		}
		first := number
		number += uint64(n+spansOfTrace-1) / spansOfTrace
		requests.Go(func() {
			defer func() { <-places }()
			v.request(ctx, first, n)
		})
		// A rate that was held back is not made up for.
		next = next.Add(interval)
		if now := time.Now(); next.Before(now) {
			next = now
		} else if retry.Sleep(ctx, next.Sub(now)) != nil {
			return
		}
	}
}

// crowded reports whether the ledger is full, because lookups fail.
func (v *Verifier) crowded() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ledger.held() >= maxOutstanding
}

// sendPauses are the pauses of OTLP's exponential backoff.
var sendPauses = retry.Policy{First: 500 * time.Millisecond, Max: 5 * time.Second}

// request sends one request until it is answered for good, or for LostAfter.
func (v *Verifier) request(ctx context.Context, first uint64, spans int) {
	r, err := v.maker.request(first, time.Now(), spans)
	if err != nil {
		v.log.Error("make a request", slog.Any("error", err))
		return
	}
	// A request that has begun gets its answer, also after the end.
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), v.cfg.LostAfter)
	defer stop()
	var last error
	err = retry.Do(ctx, sendPauses, func(ctx context.Context) error {
		last = v.sender.Send(ctx, r.body)
		if last != nil && final(last) {
			return retry.Stop(last)
		}
		if after := pause(last); after > 0 {
			_ = retry.Sleep(ctx, after)
		}
		return last
	}, func(f retry.Failure) { v.requestFailed(f.Err) })
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	switch {
	case err == nil:
		v.failed.request = ""
		v.ledger.sent(r, acknowledged, now)
	case final(last):
		v.failed.request = last.Error()
		v.ledger.sent(r, refused, now)
	default:
		v.failed.request = last.Error()
		v.ledger.sent(r, unanswered, now)
	}
}

func (v *Verifier) requestFailed(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if text := err.Error(); text != v.failed.request {
		v.failed.request = text
		v.log.Warn("the request is sent again", slog.Any("error", err))
	}
}

// lookUp asks ClickHouse until sending has ended and nothing is waiting, or until ctx ends.
// If ClickHouse does not answer, it gives up when all spans would have been decided.
func (v *Verifier) lookUp(ctx context.Context, sent <-chan struct{}) {
	var over time.Time // when sending ended
	for ctx.Err() == nil {
		asked := time.Now()
		select {
		case <-sent:
			over, sent = asked, nil
		default:
		}
		if !over.IsZero() && asked.Sub(over) > 2*v.cfg.LostAfter+v.cfg.Recheck {
			return
		}
		v.mu.Lock()
		ids, from, to := v.ledger.due(asked)
		waiting := len(v.ledger.waiting)
		v.mu.Unlock()
		if !over.IsZero() && waiting == 0 {
			return
		}
		if len(ids) == maxLookup {
			v.ask(ctx, ids, from, to, asked)
			continue // more may be due
		}
		if len(ids) > 0 {
			v.ask(ctx, ids, from, to, asked)
		}
		_ = retry.Sleep(ctx, v.cfg.Poll)
	}
}

func (v *Verifier) ask(ctx context.Context, ids []traceID, from, to, asked time.Time) {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	rows, err := v.store.Lookup(ctx, texts, from, to)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		if text := err.Error(); ctx.Err() == nil && text != v.failed.lookup {
			v.failed.lookup = text
			v.log.Warn("ClickHouse does not answer; spans are judged once it does", slog.Any("error", err))
		}
		return
	}
	if v.failed.lookup != "" {
		v.failed.lookup = ""
		v.log.Info("ClickHouse answers again")
	}
	v.ledger.found(ids, rows, asked, time.Now())
}

// cleanDays is how many days back spans of earlier runs are looked for.
const cleanDays = 3

// clean deletes old spans of the verifier, once a day and at the start.
func (v *Verifier) clean(ctx context.Context, sent <-chan struct{}) {
	var cleaned time.Time
	for {
		last := time.Now().Add(-v.cfg.Keep).UTC().Truncate(24*time.Hour).AddDate(0, 0, -1) // the last day that ended before Keep began
		for day := last.AddDate(0, 0, 1-cleanDays); !day.After(last); day = day.AddDate(0, 0, 1) {
			if !day.After(cleaned) {
				continue
			}
			if err := v.store.Clean(ctx, day); err != nil {
				if ctx.Err() == nil {
					v.log.Warn("old spans of the verifier stay until the retention of all spans", slog.String("day", day.Format(time.DateOnly)), slog.Any("error", err))
				}
				break
			}
			cleaned = day
		}
		select {
		case <-sent:
			return
		case <-ctx.Done():
			return
		case <-time.After(time.Hour):
		}
	}
}

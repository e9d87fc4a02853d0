package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Servers sends requests to the servers. pkg/agent/upstream implements it.
type Servers interface {
	// Ready reports whether some server can be reached at the moment.
	Ready() bool
	// WaitReady returns nil once a server can be reached, or the error of ctx
	// once that has ended.
	WaitReady(ctx context.Context) error
	// Export sends a request of sig to a server and returns nil once it is
	// stored.
	Export(ctx context.Context, sig *signal.Signal, body []byte, opts upstream.ExportOptions) (signal.Result, error)
}

// Spool stores requests on disk. pkg/agent/spool implements it.
type Spool interface {
	Append(ctx context.Context, entry spool.Entry) error
	Next(ctx context.Context) (spool.Entry, error)
	Done(entry spool.Entry) error
	Return(entry spool.Entry)
	Len() int
	SetMaxBytes(n int64)
}

// pipe sends the requests of one signal to a server, or appends them to the
// spool of that signal.
type pipe struct {
	signal   *signal.Signal
	foreign  bool // other programs made the requests, so they may contain items that no server stores
	up       Servers
	spool    Spool
	codec    *codec
	log      *slog.Logger
	metrics  *pipeMetrics
	liveTime time.Duration
	compress atomic.Bool // compress requests to servers
	rest     rest        // active while a server asked for a pause
	spooling spooling
	accepted atomic.Int64 // when a server last accepted a request, in nanoseconds since the Unix epoch
}

// leastCut is the size below which requests are never cut: no server has a lower
// limit, so a smaller request is rejected for another reason.
const leastCut = 1 << 20

// export sends body, in pieces if it is too large for a server. After an error,
// outcomeUnknown reports whether a server may have stored some of it.
func (p *pipe) export(ctx context.Context, body []byte, opts upstream.ExportOptions) (res signal.Result, outcomeUnknown bool, err error) {
	res, err = p.up.Export(ctx, p.signal, body, opts)
	if err == nil {
		p.accepted.Store(time.Now().UnixNano())
		return res, false, nil
	}
	if !upstream.TooLarge(err) || len(body) < leastCut {
		return res, upstream.OutcomeUnknown(err), err
	}
	pieces, rejected, message, cutErr := p.cut(body)
	if cutErr != nil || len(pieces) == 1 && rejected == 0 {
		return res, false, fault.As(fault.Rejected, err) // a single item too large for any server
	}
	res = signal.Result{Rejected: rejected, Message: message}
	stored := false
	for _, piece := range pieces {
		part, unknown, partErr := p.export(ctx, piece, opts)
		switch {
		case fault.ClassOf(partErr) == fault.Rejected:
			part = signal.Result{Rejected: int64(p.signal.Count(piece)), Message: partErr.Error()}
			err = partErr
		case partErr != nil:
			return signal.Result{}, stored || unknown, partErr
		default:
			stored = true
		}
		res.Rejected += part.Rejected
		if part.Message != "" && !strings.Contains(res.Message, part.Message) {
			res.Message = strings.TrimPrefix(res.Message+"; "+part.Message, "; ")
		}
	}
	if !stored {
		return signal.Result{}, false, fault.As(fault.Rejected, err)
	}
	return res, false, nil
}

// cut splits a request that is too large for a server into pieces of about half
// its size. It drops, counts and explains the items that no server ever stores.
func (p *pipe) cut(body []byte) (pieces [][]byte, rejected int64, message string, err error) {
	size := len(body)/2 + 1
	records, left, err := p.signal.NewSplitter().Cut(body, size) // rare and large: its memory is not reused
	for _, r := range records {
		pieces = append(pieces, r.Value)
	}
	if left.Total() > 0 {
		message = p.signal.Explain(&left, signal.Anytime, size)
	}
	return pieces, left.Total(), message, err
}

// sift returns body without the items that no server ever stores, and the
// result about those for the sender.
func (p *pipe) sift(body []byte) ([]byte, signal.Result) {
	records, left, err := p.signal.NewSplitter().Cut(body, math.MaxInt)
	if err != nil || left.Total() == 0 {
		return body, signal.Result{}
	}
	kept := []byte{}
	for _, r := range records { // at most one
		kept = r.Value
	}
	return kept, signal.Result{Rejected: left.Total(), Message: p.signal.Explain(&left, signal.Anytime, math.MaxInt)}
}

// spoolFullDelay is the retry delay for senders when the spool is full: it has
// room again when the drainer has sent a segment, which takes seconds at least.
const spoolFullDelay = 10 * time.Second

// forward sends body, a request of n items, to a server, or spools it if no
// server accepts it. It acknowledges them with a nil error and does not keep
// body.
func (p *pipe) forward(ctx context.Context, body []byte, n int) (signal.Result, error) {
	p.metrics.received(n, len(body))
	res, err := p.sendOrSpool(ctx, body, n)
	if err != nil {
		p.metrics.failed.Add(float64(n))
	}
	return res, err
}

func (p *pipe) sendOrSpool(ctx context.Context, body []byte, n int) (signal.Result, error) {
	received := time.Now() // sent with every attempt, so that servers judge them all alike
	outcomeUnknown := false
	why := errNoServer
	if resting := p.rest.active(); resting {
		why = errAskedToWait
	} else if p.up.Ready() {
		live, cancel := context.WithTimeout(ctx, p.liveTime)
		res, unknown, err := p.export(live, body, upstream.ExportOptions{Received: received, Compress: p.compress.Load()})
		cancel()
		switch {
		case err == nil:
			p.spooling.end(ctx, p)
			p.metrics.forwarded(pathLive, n, res.Rejected)
			return res, nil
		case fault.ClassOf(err) == fault.Rejected:
			p.metrics.refuse(reasonServer)
			return signal.Result{}, err
		case ctx.Err() != nil: // the sender is gone, and will retry
			return signal.Result{}, err
		}
		p.rest.begin(err)
		outcomeUnknown, why = unknown, err
	}
	// Reject items that no server will store now, while the sender waits for
	// the reply.
	var res signal.Result
	if p.foreign {
		body, res = p.sift(body)
		n -= int(res.Rejected)
	}
	if n == 0 {
		p.metrics.forwarded(pathLive, int(res.Rejected), res.Rejected)
		return res, nil
	}
	err := p.spool.Append(ctx, spool.Entry{Body: p.codec.pack(body), Resend: outcomeUnknown, Received: received})
	switch {
	case err == nil:
		p.spooling.begin(ctx, p, n, why)
		p.metrics.spooled.Add(float64(n))
		p.metrics.forwarded(pathLive, int(res.Rejected), res.Rejected)
		return res, nil
	case errors.Is(err, spool.ErrFull):
		p.metrics.refuse(reasonSpoolFull)
		return signal.Result{}, &busyError{fault.As(fault.Overload, errors.New("no server can be reached, and the spool is full")), spoolFullDelay}
	default:
		p.metrics.refuse(reasonSpoolBroken)
		p.log.ErrorContext(ctx, "cannot spool a request", slog.Any("error", err))
		return signal.Result{}, &busyError{fault.As(fault.Overload, fmt.Errorf("no server can be reached, and the spool failed: %w", err)), spoolFullDelay}
	}
}

// Reasons to spool besides a server's reply.
var (
	errNoServer    = errors.New("no server is connected")
	errAskedToWait = errors.New("a server asked to wait")
)

// spooling logs when requests begin to go into the spool, and when servers take
// them again.
type spooling struct {
	active atomic.Bool

	mu    sync.Mutex
	since time.Time // of the first request spooled
	last  time.Time // of the last one
	items int
}

// settled is how long servers take every request before spooling counts as
// over: a server may refuse some requests and take others for a while.
const settled = 10 * time.Second

// begin records that n items were spooled, and why.
func (s *spooling) begin(ctx context.Context, p *pipe, n int, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items += n
	s.last = time.Now()
	if s.active.Swap(true) {
		return
	}
	s.since = s.last
	p.log.WarnContext(ctx, "spooling requests to disk", slog.String("signal", p.signal.Name), slog.Any("cause", why))
}

// end records that a server took a request.
func (s *spooling) end(ctx context.Context, p *pipe) {
	if !s.active.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < settled || !s.active.Swap(false) {
		return
	}
	p.log.InfoContext(ctx, "servers take requests again, draining the spool", slog.String("signal", p.signal.Name),
		slog.Duration("after", s.last.Sub(s.since).Round(time.Millisecond)), slog.Int("spooled", s.items), slog.Int("requests_in_spool", p.spool.Len()))
	s.items = 0
}

// busyError asks the sender to retry later.
type busyError struct {
	error
	after time.Duration
}

func (e *busyError) Unwrap() error { return e.error }

// RetryAfter returns how long the sender should wait.
func (e *busyError) RetryAfter() time.Duration { return e.after }

// rest is a pause that a server asked for; meanwhile requests go straight to
// the spool.
type rest struct{ until atomic.Int64 }

func (r *rest) active() bool { return time.Now().UnixNano() < r.until.Load() }

// begin starts a pause if err asks for one.
func (r *rest) begin(err error) {
	if after, ok := upstream.RetryAfter(err); ok {
		r.until.Store(time.Now().Add(after).UnixNano())
	}
}

// wait blocks until no pause is active, or returns the error of ctx.
func (r *rest) wait(ctx context.Context) error {
	for {
		left := time.Until(time.Unix(0, r.until.Load()))
		if left <= 0 {
			return nil
		}
		if err := retry.Sleep(ctx, left); err != nil {
			return err
		}
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/spool"
	"github.com/metaflowys/metaflow-server/pkg/upstream"
)

// Connectivity tells whether servers can be reached. pkg/upstream satisfies it.
type Connectivity interface {
	// Ready tells whether some server can be reached at the moment.
	Ready() bool
	// WaitReady returns nil when one can be reached, or when ctx has ended its error.
	WaitReady(ctx context.Context) error
}

// Spool keeps requests on disk. pkg/spool satisfies it.
type Spool interface {
	Append(ctx context.Context, entry spool.Entry) error
	Next(ctx context.Context) (spool.Entry, error)
	Done(entry spool.Entry) error
	Return(entry spool.Entry)
	Len() int
	SetMaxBytes(n int64)
}

// pipe takes requests of one kind, of spans or of flows, to a server or to the spool
// of that kind.
type pipe struct {
	up       Connectivity
	send     func(ctx context.Context, body []byte, opts upstream.ExportOptions) (upstream.Result, error)
	count    func(body []byte) int // items in a valid request
	spool    Spool
	codec    *codec
	log      *slog.Logger
	metrics  *pipeMetrics
	liveTime time.Duration
	compress atomic.Bool // towards the servers
	rest     rest        // while a server asked for one
}

// spoolFullDelay is what senders are asked to wait when the spool is full: room
// comes when the drainer has sent a segment of it, which takes seconds at least.
const spoolFullDelay = 10 * time.Second

// forward sends body, a request of n items, to a server, and to the spool when no
// server takes it. It acknowledges them with a nil error and keeps nothing of body.
func (p *pipe) forward(ctx context.Context, body []byte, n int) (upstream.Result, error) {
	p.metrics.received(n, len(body))
	res, err := p.sendOrSpool(ctx, body, n)
	if err != nil {
		p.metrics.failed.Add(float64(n))
	}
	return res, err
}

func (p *pipe) sendOrSpool(ctx context.Context, body []byte, n int) (upstream.Result, error) {
	received := time.Now() // it goes with every try, so that servers judge all of them alike
	doubtful := false
	if p.up.Ready() && !p.rest.active() {
		live, cancel := context.WithTimeout(ctx, p.liveTime)
		res, err := p.send(live, body, upstream.ExportOptions{Received: received, Compress: p.compress.Load()})
		cancel()
		switch {
		case err == nil:
			p.metrics.forwarded(pathLive, n, res.Rejected)
			return res, nil
		case fault.ClassOf(err) == fault.Rejected:
			p.metrics.refuse(reasonServer)
			return upstream.Result{}, err
		case ctx.Err() != nil: // the sender has gone, and will send again
			return upstream.Result{}, err
		}
		p.rest.begin(err)
		doubtful = upstream.Doubtful(err)
	}
	err := p.spool.Append(ctx, spool.Entry{Body: p.codec.pack(body), Resend: doubtful, Received: received})
	switch {
	case err == nil:
		p.metrics.spooled.Add(float64(n))
		return upstream.Result{}, nil
	case errors.Is(err, spool.ErrFull):
		p.metrics.refuse(reasonSpoolFull)
		return upstream.Result{}, &busyError{fault.As(fault.Overload, errors.New("no server can be reached and the spool is full")), spoolFullDelay}
	default:
		p.metrics.refuse(reasonSpoolBroken)
		p.log.ErrorContext(ctx, "a request could not be spooled", slog.Any("error", err))
		return upstream.Result{}, &busyError{fault.As(fault.Overload, fmt.Errorf("no server can be reached, and the spool: %w", err)), spoolFullDelay}
	}
}

// busyError asks the sender to come back.
type busyError struct {
	error
	after time.Duration
}

func (e *busyError) Unwrap() error { return e.error }

// RetryAfter is how long the sender should wait.
func (e *busyError) RetryAfter() time.Duration { return e.after }

// rest is a pause that a server asked for: requests go straight to the spool.
type rest struct{ until atomic.Int64 }

func (r *rest) active() bool { return time.Now().UnixNano() < r.until.Load() }

// begin starts a rest when err asks for one.
func (r *rest) begin(err error) {
	if after, ok := upstream.RetryAfter(err); ok {
		r.until.Store(time.Now().Add(after).UnixNano())
	}
}

// wait returns when no rest is active, or with the error of ctx.
func (r *rest) wait(ctx context.Context) error {
	for {
		left := time.Until(time.Unix(0, r.until.Load()))
		if left <= 0 {
			return nil
		}
		if err := pause(ctx, left); err != nil {
			return err
		}
	}
}

// pause waits for d; it returns the error of ctx if that ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

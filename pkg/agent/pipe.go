package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Connectivity tells whether servers can be reached. pkg/agent/upstream satisfies it.
type Connectivity interface {
	// Ready tells whether some server can be reached at the moment.
	Ready() bool
	// WaitReady returns nil when one can be reached, or when ctx has ended its error.
	WaitReady(ctx context.Context) error
}

// Spool keeps requests on disk. pkg/agent/spool satisfies it.
type Spool interface {
	Append(ctx context.Context, entry spool.Entry) error
	Next(ctx context.Context) (spool.Entry, error)
	Done(entry spool.Entry) error
	Return(entry spool.Entry)
	Len() int
	SetMaxBytes(n int64)
}

// cutter takes a request apart that is too large for a server, each piece about half of it. What cannot be
// stored anywhere is left out, counted and explained.
type cutter func(body []byte) (pieces [][]byte, rejected int64, message string, err error)

// sifter returns body without the items that no server stores at any time, and what to tell the sender of them.
type sifter func(body []byte) ([]byte, upstream.Result)

// pipe takes requests of one kind, of spans or of flows, to a server or to the spool
// of that kind.
type pipe struct {
	up       Connectivity
	send     func(ctx context.Context, body []byte, opts upstream.ExportOptions) (upstream.Result, error)
	count    func(body []byte) int // items in a valid request
	cut      cutter                // nil where requests are small
	sift     sifter                // nil where all items are valid
	spool    Spool
	codec    *codec
	log      *slog.Logger
	metrics  *pipeMetrics
	liveTime time.Duration
	compress atomic.Bool  // towards the servers
	rest     rest         // while a server asked for one
	accepted atomic.Int64 // when a server took a request last, in nanoseconds since the Unix epoch
}

// leastCut is the size of requests that are never taken apart: no server has a lower limit, and what is
// refused below it is refused for something else.
const leastCut = 1 << 20

// export sends body, in pieces when it is too large for a server. doubtful tells after an error whether a
// server may have stored some of it.
func (p *pipe) export(ctx context.Context, body []byte, opts upstream.ExportOptions) (res upstream.Result, doubtful bool, err error) {
	res, err = p.send(ctx, body, opts)
	if err == nil {
		p.accepted.Store(time.Now().UnixNano())
		return res, false, nil
	}
	if p.cut == nil || !upstream.TooLarge(err) || len(body) < leastCut {
		return res, upstream.OutcomeUnknown(err), err
	}
	pieces, rejected, message, cutErr := p.cut(body)
	if cutErr != nil || len(pieces) == 1 && rejected == 0 {
		return res, false, fault.As(fault.Rejected, err) // one span that no server takes
	}
	res = upstream.Result{Rejected: rejected, Message: message}
	stored := false
	for _, piece := range pieces {
		part, unsure, partErr := p.export(ctx, piece, opts)
		switch {
		case fault.ClassOf(partErr) == fault.Rejected:
			part = upstream.Result{Rejected: int64(p.count(piece)), Message: partErr.Error()}
			err = partErr
		case partErr != nil:
			return upstream.Result{}, stored || unsure, partErr
		default:
			stored = true
		}
		res.Rejected += part.Rejected
		if part.Message != "" && !strings.Contains(res.Message, part.Message) {
			res.Message = strings.TrimPrefix(res.Message+"; "+part.Message, "; ")
		}
	}
	if !stored {
		return upstream.Result{}, false, fault.As(fault.Rejected, err)
	}
	return res, false, nil
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
		res, unsure, err := p.export(live, body, upstream.ExportOptions{Received: received, Compress: p.compress.Load()})
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
		doubtful = unsure
	}
	// What no server will store is said now, while somebody waits for the answer.
	var res upstream.Result
	if p.sift != nil {
		body, res = p.sift(body)
		n -= int(res.Rejected)
	}
	if n == 0 {
		p.metrics.forwarded(pathLive, int(res.Rejected), res.Rejected)
		return res, nil
	}
	err := p.spool.Append(ctx, spool.Entry{Body: p.codec.pack(body), Resend: doubtful, Received: received})
	switch {
	case err == nil:
		p.metrics.spooled.Add(float64(n))
		p.metrics.forwarded(pathLive, int(res.Rejected), res.Rejected)
		return res, nil
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
		if err := retry.Sleep(ctx, left); err != nil {
			return err
		}
	}
}

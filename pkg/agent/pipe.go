package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Servers is the way to the servers. pkg/agent/upstream satisfies it.
type Servers interface {
	// Ready reports whether some server can be reached at the moment.
	Ready() bool
	// WaitReady returns nil once a server can be reached, or the error of ctx
	// once that has ended.
	WaitReady(ctx context.Context) error
	// Export sends a request of sig to a server and returns nil once it is stored.
	Export(ctx context.Context, sig *signal.Signal, body []byte, opts upstream.ExportOptions) (signal.Result, error)
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

// pipe takes the requests of one signal to a server, or to the spool of that
// signal.
type pipe struct {
	signal   *signal.Signal
	foreign  bool // others made the requests, so some items may be ones that no server stores
	up       Servers
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
func (p *pipe) export(ctx context.Context, body []byte, opts upstream.ExportOptions) (res signal.Result, doubtful bool, err error) {
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
		return res, false, fault.As(fault.Rejected, err) // one item that no server takes
	}
	res = signal.Result{Rejected: rejected, Message: message}
	stored := false
	for _, piece := range pieces {
		part, unsure, partErr := p.export(ctx, piece, opts)
		switch {
		case fault.ClassOf(partErr) == fault.Rejected:
			part = signal.Result{Rejected: int64(p.signal.Count(piece)), Message: partErr.Error()}
			err = partErr
		case partErr != nil:
			return signal.Result{}, stored || unsure, partErr
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

// cut takes a request apart that is too large for a server, each piece about
// half of it. It leaves out, counts and explains the items that no server stores
// at any time.
func (p *pipe) cut(body []byte) (pieces [][]byte, rejected int64, message string, err error) {
	size := len(body)/2 + 1
	records, left, err := p.signal.NewSplitter().Cut(body, size) // rare, and large: its memory is not kept
	for _, r := range records {
		pieces = append(pieces, r.Value)
	}
	if left.Total() > 0 {
		message = p.signal.Explain(&left, signal.Anytime, size)
	}
	return pieces, left.Total(), message, err
}

// sift returns body without the items that no server stores at any time, and
// the answer about those to the sender.
func (p *pipe) sift(body []byte) ([]byte, signal.Result) {
	records, left, err := p.signal.NewSplitter().Cut(body, math.MaxInt)
	if err != nil || left.Total() == 0 {
		return body, signal.Result{}
	}
	kept := []byte{}
	for _, r := range records { // one, or none
		kept = r.Value
	}
	return kept, signal.Result{Rejected: left.Total(), Message: p.signal.Explain(&left, signal.Anytime, math.MaxInt)}
}

// spoolFullDelay is what senders are asked to wait when the spool is full: room
// comes when the drainer has sent a segment of it, which takes seconds at least.
const spoolFullDelay = 10 * time.Second

// forward sends body, a request of n items, to a server, and to the spool when no
// server takes it. It acknowledges them with a nil error and keeps nothing of body.
func (p *pipe) forward(ctx context.Context, body []byte, n int) (signal.Result, error) {
	p.metrics.received(n, len(body))
	res, err := p.sendOrSpool(ctx, body, n)
	if err != nil {
		p.metrics.failed.Add(float64(n))
	}
	return res, err
}

func (p *pipe) sendOrSpool(ctx context.Context, body []byte, n int) (signal.Result, error) {
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
			return signal.Result{}, err
		case ctx.Err() != nil: // the sender has gone, and will send again
			return signal.Result{}, err
		}
		p.rest.begin(err)
		doubtful = unsure
	}
	// The sender learns now, while it waits for the answer, what no server will
	// store.
	var res signal.Result
	if p.foreign {
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
		return signal.Result{}, &busyError{fault.As(fault.Overload, errors.New("no server can be reached and the spool is full")), spoolFullDelay}
	default:
		p.metrics.refuse(reasonSpoolBroken)
		p.log.ErrorContext(ctx, "a request could not be spooled", slog.Any("error", err))
		return signal.Result{}, &busyError{fault.As(fault.Overload, fmt.Errorf("no server can be reached, and the spool: %w", err)), spoolFullDelay}
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

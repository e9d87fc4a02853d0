package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

const (
	// drainWorkers are requests from the spool under way at a time: enough to
	// reach the rate with small requests over a network of some milliseconds.
	drainWorkers = 8
	// retryDelay is how long a worker waits after a failure that names no time.
	retryDelay = time.Second
	// triesInOrder is how often a request is tried before those behind it are looked at.
	triesInOrder = 3
	// asideAfter is how long a request fails while others are accepted until it is put aside: longer than an
	// overload that hits requests by chance.
	asideAfter = 30 * time.Second
)

// drainer sends what the spool of a pipe holds, and puts aside what servers do not take.
type drainer struct {
	*pipe
	limit   *rate.Limiter // bytes per second, unpacked
	parking Parking
	held    holding

	retryDelay, asideAfter, holdFailed, holdParked, holdTick, parkedInterval time.Duration // tests are less patient
}

func newDrainer(p *pipe, parking Parking) *drainer {
	return &drainer{
		pipe: p, limit: rate.NewLimiter(rate.Inf, 0), parking: parking,
		retryDelay: retryDelay, asideAfter: asideAfter, holdFailed: holdFailed, holdParked: holdParked, holdTick: time.Second, parkedInterval: parkedInterval,
	}
}

// setRate bounds what is sent from the spool; live traffic does not count.
func (d *drainer) setRate(bytesPerSecond int64) {
	d.limit.SetBurst(int(bytesPerSecond)) // a second's worth: no request that is larger waits for ever, see take
	d.limit.SetLimit(rate.Limit(bytesPerSecond))
}

// run drains until ctx ends.
func (d *drainer) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range drainWorkers {
		g.Go(func() error {
			for {
				if err := d.one(ctx); err != nil {
					if ctx.Err() != nil {
						return nil //nolint:nilerr // a stop that was asked for
					}
					return err
				}
			}
		})
	}
	g.Go(func() error { d.release(ctx); return nil })
	if d.parking.Folder != nil {
		g.Go(func() error { d.retryParked(ctx); return nil })
	}
	return g.Wait()
}

// one sends the oldest request, or gives it back. Its error ends the drainer.
func (d *drainer) one(ctx context.Context) error {
	if err := d.up.WaitReady(ctx); err != nil {
		return err
	}
	if err := d.rest.wait(ctx); err != nil {
		return err
	}
	entry, err := d.spool.Next(ctx)
	if err != nil {
		return err
	}
	body, err := d.codec.unpack(entry.Body)
	if err != nil { // its checksum was right, so it was written so
		d.metrics.lostRequests.Inc()
		return d.park(ctx, entry, parked.Head{Cause: fmt.Sprintf("it cannot be unpacked: %v", err)})
	}
	if err := d.take(ctx, len(body)); err != nil {
		d.spool.Return(entry)
		return err
	}
	n := d.signal.Count(body)
	res, doubtful, err := d.export(ctx, body, upstream.ExportOptions{Resend: entry.Resend, Received: entry.Received, Compress: d.compress.Load()})
	entry.Resend = entry.Resend || doubtful
	switch {
	case err == nil && res.Rejected > 0: // nobody waits for an answer any more
		d.metrics.forwarded(pathSpool, n, res.Rejected)
		entry.Resend = true
		return d.park(ctx, entry, parked.Head{Items: n, Refused: res.Rejected, Cause: partlyRefused(res, n).Error()})
	case err == nil:
		d.metrics.forwarded(pathSpool, n, 0)
		return d.done(entry)
	case fault.ClassOf(err) == fault.Rejected:
		return d.park(ctx, entry, parked.Head{Items: n, Refused: int64(n), Cause: err.Error()})
	case ctx.Err() != nil:
		d.spool.Return(entry)
		return ctx.Err()
	}
	return d.again(ctx, entry, n, err)
}

// again keeps a request for later that may be accepted then. It is tried first, because a server that is away refuses all
// alike. A request that fails again and again lets those behind it pass. When a server accepts those, the
// trouble is with this one: it waits in the folder of parked requests until its cause is mended.
func (d *drainer) again(ctx context.Context, entry spool.Entry, n int, err error) error {
	if entry.Tries++; entry.Tries == 1 {
		entry.Since = time.Now()
	}
	if time.Since(entry.Since) >= d.asideAfter && d.accepted.Load() > entry.Since.UnixNano() {
		return d.park(ctx, entry, parked.Head{Items: n, Refused: int64(n), Cause: err.Error(), Waits: true})
	}
	if entry.Tries < triesInOrder || !d.held.fill(&held{entry: entry, due: time.Now().Add(d.holdFailed)}) {
		d.spool.Return(entry)
	}
	d.rest.begin(err)
	return retry.Sleep(ctx, d.retryDelay)
}

// done frees entry. What cannot be freed is sent again after a restart, which
// the server is told.
func (d *drainer) done(entry spool.Entry) error {
	if err := d.spool.Done(entry); err != nil {
		d.log.Error("a request that was sent could not be removed from the spool", slog.Any("error", err))
	}
	return nil
}

// take waits until n bytes may be sent.
func (d *drainer) take(ctx context.Context, n int) error {
	for n > 0 {
		part := min(n, d.limit.Burst())
		if part == 0 { // no rate is set yet
			return nil
		}
		if err := d.limit.WaitN(ctx, part); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue // a lower rate was set in between
		}
		n -= part
	}
	return nil
}

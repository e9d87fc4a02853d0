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
	// drainWorkers is the number of requests in flight from the spool: enough
	// to reach the drain rate with small requests over a network with a latency
	// of some milliseconds.
	drainWorkers = 8
	// retryDelay is how long a worker waits after a failure without a retry
	// delay.
	retryDelay = time.Second
	// triesInOrder is the number of attempts for a request before younger ones
	// may pass it.
	triesInOrder = 3
	// parkAfter is how long a request fails while others are accepted before it
	// is parked: longer than an overload that hits requests by chance.
	parkAfter = 30 * time.Second
)

// drainer sends the spooled requests of a pipe, and parks those that servers
// reject.
type drainer struct {
	*pipe
	limit   *rate.Limiter // bytes per second, unpacked
	parking Parking
	held    holding

	retryDelay, parkAfter, holdFailed, holdParked, holdTick, parkedInterval time.Duration // shortened by tests
}

func newDrainer(p *pipe, parking Parking) *drainer {
	return &drainer{
		pipe: p, limit: rate.NewLimiter(rate.Inf, 0), parking: parking,
		retryDelay: retryDelay, parkAfter: parkAfter, holdFailed: holdFailed, holdParked: holdParked, holdTick: time.Second, parkedInterval: parkedInterval,
	}
}

// setRate bounds the rate of sending from the spool, in uncompressed bytes;
// live traffic does not count.
func (d *drainer) setRate(bytesPerSecond int64) {
	d.limit.SetBurst(int(bytesPerSecond)) // a second's worth; take splits larger requests
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
						return nil //nolint:nilerr // an orderly stop
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

// one sends the oldest request, or returns it to the spool. Its error ends the
// drainer.
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
	if err != nil { // the checksum matched, so it was written this way
		d.metrics.lostRequests.Inc()
		return d.park(ctx, entry, parked.Head{Cause: fmt.Sprintf("cannot unpack: %v", err)})
	}
	if err := d.take(ctx, len(body)); err != nil {
		d.spool.Return(entry)
		return err
	}
	n := d.signal.Count(body)
	res, doubtful, err := d.export(ctx, body, upstream.ExportOptions{Resend: entry.Resend, Received: entry.Received, Compress: d.compress.Load()})
	entry.Resend = entry.Resend || doubtful
	switch {
	case err == nil && res.Rejected > 0: // no sender waits for the reply any more
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

// again schedules another attempt for a request that may be accepted later. The
// request is tried first, because servers that are down reject all requests
// alike. After several failures it lets younger requests pass. If a server
// accepts those, this request itself is the problem: it waits in the folder of
// parked requests until the cause is fixed.
func (d *drainer) again(ctx context.Context, entry spool.Entry, n int, err error) error {
	if entry.Tries++; entry.Tries == 1 {
		entry.Since = time.Now()
	}
	if time.Since(entry.Since) >= d.parkAfter && d.accepted.Load() > entry.Since.UnixNano() {
		return d.park(ctx, entry, parked.Head{Items: n, Refused: int64(n), Cause: err.Error(), Waits: true})
	}
	if entry.Tries < triesInOrder || !d.held.fill(&held{entry: entry, due: time.Now().Add(d.holdFailed)}) {
		d.spool.Return(entry)
	}
	d.rest.begin(err)
	return retry.Sleep(ctx, d.retryDelay)
}

// done releases entry. If that fails, the entry is sent again after a restart,
// marked as resent.
func (d *drainer) done(entry spool.Entry) error {
	if err := d.spool.Done(entry); err != nil {
		d.log.Error("cannot remove a sent request from the spool", slog.Any("error", err))
	}
	return nil
}

// take blocks until n bytes may be sent.
func (d *drainer) take(ctx context.Context, n int) error {
	for n > 0 {
		part := min(n, d.limit.Burst())
		if part == 0 { // no rate set yet
			return nil
		}
		if err := d.limit.WaitN(ctx, part); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue // the rate was lowered meanwhile
		}
		n -= part
	}
	return nil
}

package agent

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/spool"
	"github.com/metaflowys/metaflow-server/pkg/upstream"
)

const (
	// drainWorkers are requests from the spool under way at a time: enough to
	// reach the rate with small requests over a network of some milliseconds.
	drainWorkers = 8
	// retryDelay is how long a worker waits after a failure that names no time.
	retryDelay = time.Second
)

// drainer sends what the spool of a pipe holds.
type drainer struct {
	*pipe
	limit *rate.Limiter // bytes per second, unpacked
}

func newDrainer(p *pipe) *drainer {
	return &drainer{pipe: p, limit: rate.NewLimiter(rate.Inf, 0)}
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
		d.log.ErrorContext(ctx, "a request of the spool cannot be unpacked", slog.Any("error", err))
		return d.done(entry)
	}
	if err := d.take(ctx, len(body)); err != nil {
		d.spool.Return(entry)
		return err
	}
	n := d.count(body)
	res, err := d.send(ctx, body, upstream.ExportOptions{Resend: entry.Resend, Received: entry.Received, Compress: d.compress.Load()})
	switch {
	case err == nil:
		d.metrics.forwarded(pathSpool, n, res.Rejected)
		if res.Rejected > 0 {
			d.log.WarnContext(ctx, "the server rejected some of what was in the spool", slog.Int64(d.metrics.items, res.Rejected), slog.String("cause", res.Message))
		}
		return d.done(entry)
	case fault.ClassOf(err) == fault.Rejected:
		// Nobody waits for an answer any more. It was valid when it came, so only the
		// server's limits can be narrower than the agent's.
		d.metrics.lost.Add(float64(n))
		d.log.ErrorContext(ctx, "the server refused a request of the spool for good", slog.Int(d.metrics.items, n),
			slog.Int("bytes", len(body)), slog.Time("received", entry.Received), slog.Any("error", err))
		return d.done(entry)
	}
	entry.Resend = entry.Resend || upstream.Doubtful(err)
	d.spool.Return(entry)
	d.rest.begin(err)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return pause(ctx, retryDelay)
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

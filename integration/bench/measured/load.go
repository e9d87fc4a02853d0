package measured

import (
	"context"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Send sends n requests, repeating the load, with the given number of
// concurrent senders and at most perSecond requests a second; 0 means no limit.
// It returns once send has returned for each, or after the first error.
func Send(ctx context.Context, load [][]byte, n, senders int, perSecond float64, send func(context.Context, []byte) error) error {
	limit := rate.NewLimiter(rate.Inf, 1)
	if perSecond > 0 {
		limit.SetLimit(rate.Limit(perSecond))
	}
	work := make(chan []byte)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		for i := range n {
			if err := limit.Wait(ctx); err != nil {
				return err
			}
			select {
			case work <- load[i%len(load)]:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range senders {
		g.Go(func() error {
			for request := range work {
				if err := send(ctx, request); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

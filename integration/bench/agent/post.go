package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// post sends n requests of the load, at most so many a second (0 is without a
// limit), and returns when each is acknowledged.
func post(ctx context.Context, url string, load [][]byte, n, senders int, perSecond float64) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders}}
	defer client.CloseIdleConnections()
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
			for body := range work {
				if err := postOne(ctx, client, url, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func postOne(ctx context.Context, client *http.Client, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %s", resp.Status, text)
	}
	return err
}

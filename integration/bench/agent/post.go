package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// post sends n requests of the load, at most perSecond a second (0 means no
// limit), and returns when each is acknowledged.
func post(ctx context.Context, url string, load [][]byte, n, senders int, perSecond float64) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders}}
	defer client.CloseIdleConnections()
	return measured.Send(ctx, load, n, senders, perSecond, func(ctx context.Context, body []byte) error {
		return postOne(ctx, client, url, body)
	})
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

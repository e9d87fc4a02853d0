package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// clickHouse queries ClickHouse over HTTP.
type clickHouse struct{ address string }

// table returns a query's result as a formatted table.
func (c clickHouse) table(ctx context.Context, query string) (string, error) {
	return c.ask(ctx, query, url.Values{
		"default_format":                   {"PrettyCompactMonoBlock"},
		"output_format_pretty_row_numbers": {"0"},
		"output_format_pretty_color":       {"0"},
	})
}

// number returns the single number that a query results in.
func (c clickHouse) number(ctx context.Context, query string) (int, error) {
	text, err := c.ask(ctx, query, nil)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(text))
}

func (c clickHouse) ask(ctx context.Context, query string, settings url.Values) (string, error) {
	return get(ctx, "http://"+c.address+"/?"+settings.Encode(), query)
}

// get returns the response to a GET, or to a POST if there is a body.
func get(ctx context.Context, address, body string) (string, error) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body)) //nolint:gosec // what the demo has started
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req) //nolint:gosec // as above
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, req.URL.Host, resp.Status, text)
	}
	return string(text), err
}

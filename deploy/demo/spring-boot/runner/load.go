package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// visitors is the number of concurrent visitors.
	visitors = 3
	// warmUp is the number of visits after which the JVMs have loaded and
	// compiled what they need.
	warmUp = 8
	// requestTimeout allows for the first request of a cold JVM on a busy
	// machine.
	requestTimeout = time.Minute

	featuredItems, lastThree, customers = 12, 13, 100
)

// report counts the responses that visitors received.
type report struct {
	mu       sync.Mutex
	statuses map[int]int // responses by status
}

func (r *report) add(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statuses[status]++
}

func (r *report) total() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, count := range r.statuses {
		n += count
	}
	return n
}

// visit makes n visits, some concurrently, and returns the responses. The same
// seed buys the same things.
func visit(ctx context.Context, shop string, n int, seed uint64) (*report, error) {
	client := &http.Client{Timeout: requestTimeout}
	defer client.CloseIdleConnections()
	r := &report{statuses: map[int]int{}}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range visitors {
		g.Go(func() error {
			for {
				i := int(next.Add(1))
				if i > warmUp+n {
					return nil
				}
				v := visitor{client, shop, "visitor", rand.New(rand.NewPCG(seed, uint64(i))), r} //nolint:gosec // nothing secret
				if i <= warmUp {
					v.agent = "warm-up"
				}
				if err := v.visit(ctx); err != nil {
					return err
				}
			}
		})
	}
	return r, g.Wait()
}

type visitor struct {
	client *http.Client
	shop   string
	agent  string // user agent of the browser
	rand   *rand.Rand
	report *report
}

type line struct {
	ItemID   int `json:"itemId"`
	Quantity int `json:"quantity"`
}

type order struct {
	UserID int    `json:"userId"`
	Lines  []line `json:"lines"`
}

// visit browses, buys something and opens the account. Item 13 is in stock
// three times, so most of its buyers see that it is sold out; and the accounts
// of some customers make svc-user fail.
func (v visitor) visit(ctx context.Context) error {
	user := 1 + v.rand.IntN(customers)
	basket := order{UserID: user}
	for _, item := range v.rand.Perm(lastThree)[:2+v.rand.IntN(4)] {
		basket.Lines = append(basket.Lines, line{ItemID: 1 + item, Quantity: 1})
	}
	pages := []string{
		"/",
		"/search?text=" + []string{"oak", "glass", "steel", "number+77"}[v.rand.IntN(4)],
		fmt.Sprintf("/items/%d", basket.Lines[0].ItemID),
		fmt.Sprintf("/items/%d", 1+v.rand.IntN(featuredItems)),
	}
	for _, page := range pages {
		if err := v.ask(ctx, http.MethodGet, page, "", http.StatusOK); err != nil {
			return err
		}
	}
	text, err := json.Marshal(basket)
	if err != nil {
		return err
	}
	if err := v.ask(ctx, http.MethodPost, "/checkout", string(text), http.StatusOK, http.StatusConflict, http.StatusBadGateway); err != nil {
		return err
	}
	return v.ask(ctx, http.MethodGet, fmt.Sprintf("/account/%d", user), "", http.StatusOK, http.StatusBadGateway)
}

// ask sends a request and fails unless the response's status is among those
// expected.
func (v visitor) ask(ctx context.Context, method, path, body string, expected ...int) error {
	req, err := http.NewRequestWithContext(ctx, method, v.shop+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", v.agent)
	resp, err := v.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	v.report.add(resp.StatusCode)
	for _, status := range expected {
		if resp.StatusCode == status {
			return nil
		}
	}
	return fmt.Errorf("%s %s answered %s: %s", method, path, resp.Status, text)
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// visit sends requests through nginx at a steady rate for d, and for longer
// until it has sent the least number. The paths take turns; %d in a path becomes
// the request's number.
func (l *lab) visit(ctx context.Context, paths []string, perSecond float64, atOnce int, d time.Duration, least int) (sent, failed int) {
	visitors := l.hosts["visitors"]
	transport := &http.Transport{
		MaxIdleConnsPerHost: atOnce,
		DialContext:         func(_ context.Context, _, address string) (net.Conn, error) { return visitors.dial(address) },
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 40 * time.Second}
	jobs := make(chan int)
	var bad atomic.Int64
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := range jobs {
				if err := get(ctx, client, "http://"+l.hosts["nginx"].ip.String()+fmt.Sprintf(paths[i%len(paths)], i)); err != nil {
					bad.Add(1)
				}
			}
		})
	}
	next := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer next.Stop()
	for end := time.Now().Add(d); ctx.Err() == nil && (time.Now().Before(end) || sent < least); {
		select {
		case jobs <- sent:
			sent++
		case <-ctx.Done():
		}
		select {
		case <-next.C:
		case <-ctx.Done():
		}
	}
	close(jobs)
	workers.Wait()
	return sent, int(bad.Load())
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if err == nil && response.StatusCode >= 400 {
		err = fmt.Errorf("status %s", response.Status)
	}
	return err
}

// after waits, and returns false if ctx ended first.
func after(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// stall measures until ctx ends how late the machine wakes a waiting program,
// at worst. Programs that get no CPU acknowledge late and read late, which a
// view may rightly report: then false alarms say nothing about the view.
func stall(ctx context.Context) (worst time.Duration) {
	const beat = 10 * time.Millisecond
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-tick.C:
			worst = max(worst, time.Since(last)-beat)
			last = time.Now()
		case <-ctx.Done():
			return worst
		}
	}
}

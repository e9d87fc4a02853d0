package opshttp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// checkTimeout is shorter than common probe timeouts with their retry, and longer
	// than a healthy broker or database ever takes.
	checkTimeout = 2 * time.Second
	// readyFor is how long a verdict is cached. It bounds the load of probes, and is well
	// under the period of any probe.
	readyFor = time.Second
)

// Check checks one condition for the program's readiness.
type Check struct {
	Name string
	// Func returns nil, or why the condition does not hold. It must return soon after ctx
	// ends. It may be called from any goroutine, but never concurrently.
	Func func(ctx context.Context) error
}

// verdict is the body of /ready.
type verdict struct {
	Ready  bool     `json:"ready"`
	Checks []result `json:"checks"`
	// Notices do not make the program unready.
	Notices []string `json:"notices,omitempty"`
}

type result struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Cause string `json:"cause,omitempty"`
}

type readiness struct {
	checks  []Check
	notices []string
	news    func() []string // nil means none

	mu      sync.Mutex // held while checks run, so that other requests wait for the same verdict
	last    verdict
	expires time.Time
}

func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	v, err := r.verdict(req.Context()).of(req.URL.Query()["check"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !v.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has disconnected
}

func (r *readiness) verdict(ctx context.Context) verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.expires) {
		return r.last
	}
	// All clients share the verdict, so a disconnect of the first must not end it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	r.last = r.run(ctx)
	r.expires = time.Now().Add(readyFor)
	return r.last
}

// of returns the verdict of the named checks, or of all if names is empty. An
// orchestrator may need fewer checks than a person: it should not stop routing to a
// server that only waits for its database.
func (v verdict) of(names []string) (verdict, error) {
	if len(names) == 0 {
		return v, nil
	}
	some := verdict{Ready: true, Checks: []result{}}
	for _, name := range names {
		i := slices.IndexFunc(v.Checks, func(c result) bool { return c.Name == name })
		if i < 0 {
			return v, fmt.Errorf("check: unknown check %q", name)
		}
		some.Checks = append(some.Checks, v.Checks[i])
		some.Ready = some.Ready && v.Checks[i].OK
	}
	return some, nil
}

func (r *readiness) run(ctx context.Context) verdict {
	v := verdict{Ready: true, Checks: make([]result, len(r.checks)), Notices: slices.Clip(r.notices)}
	if r.news != nil {
		v.Notices = append(v.Notices, r.news()...)
	}
	var wg sync.WaitGroup
	for i, c := range r.checks {
		wg.Go(func() { v.Checks[i] = c.run(ctx) })
	}
	wg.Wait()
	for _, res := range v.Checks {
		v.Ready = v.Ready && res.OK
	}
	return v
}

func (c Check) run(ctx context.Context) (res result) {
	defer func() {
		if cause := recover(); cause != nil {
			res = result{Name: c.Name, Cause: fmt.Sprintf("panic: %v", cause)}
		}
	}()
	if err := c.Func(ctx); err != nil {
		return result{Name: c.Name, Cause: err.Error()}
	}
	return result{Name: c.Name, OK: true}
}

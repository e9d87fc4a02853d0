package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

func planKillServer(s *site, r *rand.Rand) (fault, bool) {
	return s.killed(r, pick(r, s.servers).program), true
}

func planKillAgent(s *site, r *rand.Rand) (fault, bool) {
	return s.killed(r, pick(r, s.agents).program), true
}

func planKillBroker(s *site, r *rand.Rand) (fault, bool) {
	return s.killed(r, pick(r, s.kafka.brokers)), true
}

// killed kills a program, and starts it again after a while.
func (s *site) killed(r *rand.Rand, p *program) fault {
	down := downFor(r)
	return fault{
		what: fmt.Sprintf("%s is killed and down for %s", p.name, down.Round(time.Millisecond)), takes: []string{p.name},
		run: func(ctx context.Context) error {
			p.kill()
			_ = retry.Sleep(ctx, down)
			return p.start()
		},
	}
}

func planKillStore(s *site, r *rand.Rand) (fault, bool) {
	down := downFor(r)
	return fault{
		what: fmt.Sprintf("ClickHouse is killed and down for %s", down.Round(time.Millisecond)), takes: []string{"clickhouse"},
		run: func(ctx context.Context) error {
			s.store.kill()
			_ = retry.Sleep(ctx, down)
			return s.store.start(ctx)
		},
	}, true
}

func planStopServer(s *site, r *rand.Rand) (fault, bool) {
	return s.paused(r, pick(r, s.servers).program), true
}

func planStopAgent(s *site, r *rand.Rand) (fault, bool) {
	return s.paused(r, pick(r, s.agents).program), true
}

func planStopBroker(s *site, r *rand.Rand) (fault, bool) {
	return s.paused(r, pick(r, s.kafka.brokers)), true
}

// paused stops a program by SIGSTOP for a while.
func (s *site) paused(r *rand.Rand, p *program) fault {
	d := s.pauseFor(r)
	return fault{
		what: fmt.Sprintf("%s is stopped for %s", p.name, d.Round(time.Millisecond)), takes: []string{p.name},
		run: func(ctx context.Context) error {
			p.pause()
			_ = retry.Sleep(ctx, d)
			p.resume()
			return nil
		},
	}
}

func planStopStore(s *site, r *rand.Rand) (fault, bool) {
	d := s.pauseFor(r)
	return fault{
		what: fmt.Sprintf("ClickHouse is stopped for %s", d.Round(time.Millisecond)), takes: []string{"clickhouse"},
		run: func(ctx context.Context) error {
			s.store.pause()
			_ = retry.Sleep(ctx, d)
			s.store.resume()
			return nil
		},
	}, true
}

// atStep calls f when a step of delivery passes between a server and an engine, or after
// ten seconds without one.
func (s *site) atStep(ctx context.Context, server int, at step, f func()) {
	links := []*link{s.toStore[server]}
	if at == commitSent || at == commitAnswer {
		links = s.kafka.links[server%len(s.kafka.links)]
	}
	reached := make(chan struct{}, len(links))
	done := make(chan struct{})
	for _, l := range links {
		l.at(at, func() {
			select {
			case reached <- struct{}{}:
				<-done
			case <-done:
			}
		})
	}
	select {
	case <-reached:
	case <-time.After(10 * time.Second):
		s.event("%s: no step %q within ten seconds", s.servers[server].name, at)
	case <-ctx.Done():
	}
	f()
	for _, l := range links {
		l.disarm()
	}
	close(done)
}

func planKillAtStep(s *site, r *rand.Rand) (fault, bool) {
	i, at, down := r.IntN(len(s.servers)), step(1+r.IntN(numberOfSteps)), downFor(r)
	p := s.servers[i].program
	return fault{
		what: fmt.Sprintf("%s is killed at %q and down for %s", p.name, at, down.Round(time.Millisecond)), takes: []string{p.name},
		run: func(ctx context.Context) error {
			s.atStep(ctx, i, at, p.kill)
			_ = retry.Sleep(ctx, down)
			return p.start()
		},
	}, true
}

// planTwoOwners stops a writer at a step for longer than its session. Another one takes its
// partitions over, and it wakes up as if they were its own.
func planTwoOwners(s *site, r *rand.Rand) (fault, bool) {
	i, at := r.IntN(len(s.servers)), step(1+r.IntN(numberOfSteps))
	d := between(r, sessionTimeout+time.Second, 2*sessionTimeout)
	if r.IntN(5) == 0 && !s.o.short {
		d = between(r, 42*time.Second, 50*time.Second)
	}
	p := s.servers[i].program
	return fault{
		what: fmt.Sprintf("%s is stopped at %q for %s", p.name, at, d.Round(time.Millisecond)), takes: []string{p.name},
		run: func(ctx context.Context) error {
			s.atStep(ctx, i, at, p.pause)
			_ = retry.Sleep(ctx, d)
			p.resume()
			return nil
		},
	}, true
}

// extraServer is the writer that planRebalance adds.
const extraServer = "server-4"

// planRebalance starts one more writer, so that partitions change hands while others insert,
// and ends it, so that they do again.
func planRebalance(s *site, r *rand.Rand) (fault, bool) {
	stays, kill := between(r, 2*time.Second, 8*time.Second), r.IntN(2) == 0
	how := "ends by SIGTERM"
	if kill {
		how = "is killed"
	}
	return fault{
		what: fmt.Sprintf("one more writer joins, and %s %s after it is ready", how, stays.Round(time.Millisecond)), takes: []string{extraServer},
		run: func(ctx context.Context) error {
			addrs := addresses{port: 20_000 + r.IntN(12_000)}
			srv, err := s.newServer(extraServer, "writer", addrs.next(), addrs.next(), servers-1)
			if err != nil {
				return err
			}
			srv.old.Store(s.servers[0].old.Load())
			if err := srv.start(); err != nil {
				return err
			}
			wait, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			_ = s.ready(wait, srv.name, srv.http) // an engine may be down
			_ = retry.Sleep(ctx, stays)
			if kill {
				srv.kill()
				return nil
			}
			if !srv.terminate(40 * time.Second) {
				return fmt.Errorf("%s did not end after SIGTERM", srv.name)
			}
			return nil
		},
	}, true
}

// planTerminate ends a program in order, under load.
func planTerminate(s *site, r *rand.Rand) (fault, bool) {
	down := downFor(r)
	target := r.IntN(len(s.servers) + len(s.agents) + 2)
	var p *program
	patience := 40 * time.Second // more than shutdown_grace and a dead engine's timeouts
	switch {
	case target < len(s.servers):
		p = s.servers[target].program
	case target < len(s.servers)+len(s.agents):
		p = s.agents[target-len(s.servers)].program
	case target == len(s.servers)+len(s.agents):
		p, patience = pick(r, s.kafka.brokers), 10*time.Second // it is no program of ours
	default:
		return fault{
			what: fmt.Sprintf("ClickHouse ends in order and is down for %s", down.Round(time.Millisecond)), takes: []string{"clickhouse"},
			run: func(ctx context.Context) error {
				s.store.stop()
				_ = retry.Sleep(ctx, down)
				return s.store.start(ctx)
			},
		}, true
	}
	ours := patience > 10*time.Second
	return fault{
		what: fmt.Sprintf("%s ends by SIGTERM and is down for %s", p.name, down.Round(time.Millisecond)), takes: []string{p.name},
		run: func(ctx context.Context) error {
			inTime := p.terminate(patience)
			_ = retry.Sleep(ctx, down)
			if err := p.start(); err != nil {
				return err
			}
			if ours && !inTime {
				return fmt.Errorf("%s did not end within %s after SIGTERM", p.name, patience)
			}
			return nil
		},
	}, true
}

// planClock sets the clock of one program forward or back for a while.
func planClock(s *site, r *rand.Rand) (fault, bool) {
	type clock struct {
		name string
		set  func(string, time.Duration) error
		most time.Duration
	}
	// Two copies of a request have the times of two gateways, which may not differ by more than
	// writer.dedup_window.
	const far, ofServer = 3 * time.Hour, 9 * time.Minute
	var all []clock
	if s.clocks.overlay {
		for _, srv := range s.servers {
			all = append(all, clock{srv.name, s.clocks.setGo, ofServer})
		}
		for _, a := range s.agents {
			all = append(all, clock{a.name, s.clocks.setGo, far})
		}
	}
	if s.clocks.library != "" {
		all = append(all, clock{"clickhouse", s.clocks.setC, far})
	}
	if len(all) == 0 {
		return fault{}, false
	}
	c := pick(r, all)
	offset := between(r, time.Second, 2*time.Minute)
	if r.IntN(2) == 0 {
		offset = between(r, 2*time.Minute, c.most)
	}
	if r.IntN(2) == 0 {
		offset = -offset
	}
	offset = offset.Truncate(time.Second)
	stays := between(r, 2*time.Second, 10*time.Second)
	return fault{
		what: fmt.Sprintf("the clock of %s jumps by %s for %s", c.name, offset, stays.Round(time.Millisecond)), takes: []string{"clock of " + c.name},
		run: func(ctx context.Context) error {
			if err := c.set(c.name, offset); err != nil {
				return err
			}
			_ = retry.Sleep(ctx, stays)
			return c.set(c.name, 0)
		},
	}, true
}

// upgrade is a rolling upgrade of all programs, one after the other: agents last, as
// docs/operate.md says.
func (s *site) upgrade() fault {
	return fault{
		kind: "rolling upgrade", what: "servers, then agents, are replaced by newer programs, one after the other",
		run: func(ctx context.Context) error {
			for _, srv := range s.servers {
				if !srv.terminate(40 * time.Second) {
					return fmt.Errorf("%s did not end after SIGTERM", srv.name)
				}
				srv.old.Store(false)
				if err := srv.start(); err != nil {
					return err
				}
				if err := s.ready(ctx, srv.name, srv.http); err != nil {
					return err
				}
			}
			for _, a := range s.agents {
				a.terminate(40 * time.Second)
				a.old.Store(false)
				if err := a.start(); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

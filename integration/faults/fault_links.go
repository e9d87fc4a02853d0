package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// some draws one to three different links.
func some(s *site, r *rand.Rand) (chosen []*link, names string) {
	all := s.links()
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	chosen = all[:1+r.IntN(3)]
	var words []string
	for _, l := range chosen {
		words = append(words, l.name)
	}
	return chosen, strings.Join(words, ", ")
}

// planCut cuts connections after some bytes in one direction, a few times.
func planCut(s *site, r *rand.Rand) (fault, bool) {
	links, names := some(s, r)
	bytes, d, times := 1+r.IntN(1<<uint(4+r.IntN(14))), direction(r.IntN(2)), 1+r.IntN(4)
	return fault{
		what:  fmt.Sprintf("connections are cut %d times after %d bytes %s: %s", times, bytes, d, names),
		takes: []string{"cuts"},
		run: func(ctx context.Context) error {
			for range times {
				for _, l := range links {
					l.cutAfter(bytes, d)
				}
				_ = retry.Sleep(ctx, time.Second)
			}
			for _, l := range links {
				l.disarm()
			}
			return nil
		},
	}, true
}

// planRefuse cuts all connections of some links and takes no new ones for a while.
func planRefuse(s *site, r *rand.Rand) (fault, bool) {
	links, names := some(s, r)
	d := between(r, 500*time.Millisecond, 10*time.Second)
	return fault{
		what: fmt.Sprintf("no connections for %s: %s", d.Round(time.Millisecond), names), takes: []string{"refusals"},
		run: func(ctx context.Context) error {
			for _, l := range links {
				l.setRefuse(true)
				l.cut()
			}
			_ = retry.Sleep(ctx, d)
			for _, l := range links {
				l.setRefuse(false)
			}
			return nil
		},
	}, true
}

// planHang lets no byte pass some links for a while.
func planHang(s *site, r *rand.Rand) (fault, bool) {
	links, names := some(s, r)
	d := between(r, time.Second, 14*time.Second)
	return fault{
		what: fmt.Sprintf("no byte passes for %s: %s", d.Round(time.Millisecond), names), takes: []string{"hangs"},
		run: func(ctx context.Context) error {
			for _, l := range links {
				l.hang()
			}
			_ = retry.Sleep(ctx, d)
			for _, l := range links {
				l.resume()
			}
			return nil
		},
	}, true
}

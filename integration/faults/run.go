package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// options are what a run does.
type options struct {
	faults     int
	together   int // at most so many at the same time
	seed       uint64
	engine     string  // apache or embedded
	rate       float64 // spans a second
	items      int     // spans of a request
	collectors int
	settle     time.Duration // the longest that may pass until all is settled
	only       []string      // kinds; none means all
	bin        string        // programs
	oldBin     string        // programs of the earlier commit; empty upgrades nothing
	oldCommit  string
	jars       string // of Apache Kafka
	clocks     bool   // clocks jump
	overlay    bool   // those of our programs, too, which were built for it
	mounts     bool   // this process may mount file systems
	short      bool   // no program is stopped for more than twelve seconds
	verbose    bool
	dir        string // evidence is left below it

	// afterwards is called when the run is judged and all programs still run, if nothing
	// was found.
	afterwards func(context.Context, *site) error
}

// tally is what is known of a kind of fault.
type tally struct {
	faults, spans, lost, twice int
	settle                     time.Duration // the longest
}

// result of a run.
type result struct {
	o          options
	kinds      map[string]*tally
	all        tally
	flows      int
	again      int // requests sent more than once
	took       time.Duration
	letters    int64
	parked     int
	most       map[string]usage
	endings    int      // programs that ended by themselves
	violations []string // none is what is to be shown
	evidence   string   // where they can be looked into
}

// cycle is faults at the same time, and what followed.
type cycle struct {
	kinds  []string
	settle time.Duration
}

// runFaults runs the whole schedule, or the faults that began before stop was closed. An error
// means that nothing could be shown.
func runFaults(ctx context.Context, stop <-chan struct{}, o options) (*result, error) {
	dir, err := os.MkdirTemp(o.dir, fmt.Sprintf("metaflow-faults-%s-%d-", o.engine, o.seed))
	if err != nil {
		return nil, err
	}
	s, err := newSite(ctx, o, dir)
	if err != nil {
		return nil, fmt.Errorf("start (logs are in %s): %w", dir, err)
	}
	defer s.close()
	watching, endWatch := context.WithCancel(ctx)
	most := make(chan map[string]usage, 1)
	go func() { most <- s.watch(watching) }()

	r := &result{o: o, kinds: make(map[string]*tally)}
	cycles, err := s.schedule(ctx, stop, r)
	if err != nil {
		r.violations = append(r.violations, err.Error())
	}
	r.took = time.Since(s.begun)
	s.load.finish(o.settle)
	s.judge(ctx, r, cycles)
	endWatch()
	r.most = <-most
	s.judgePrograms(r)
	if len(r.violations) == 0 {
		if o.afterwards != nil {
			err = o.afterwards(ctx, s)
		}
		return r, errors.Join(err, os.RemoveAll(s.withoutMounts(dir)))
	}
	r.evidence = dir
	return r, s.keepEvidence(ctx, r)
}

// withoutMounts ends all programs, so that dir can be removed.
func (s *site) withoutMounts(dir string) string {
	s.close()
	return dir
}

// schedule does the faults. It returns at the first that is not settled.
func (s *site) schedule(ctx context.Context, stop <-chan struct{}, r *result) (cycles []cycle, err error) {
	rng := rand.New(rand.NewPCG(s.o.seed, 0x6661756c7473)) //nolint:gosec // repeatable is the point
	if err := s.settle(ctx, time.Now(), s.o.settle); err != nil {
		return nil, fmt.Errorf("before the first fault: %w", err)
	}
	upgradeAt := -1
	if s.o.oldBin != "" {
		upgradeAt = rng.IntN(max(1, s.o.faults/5))
	}
	bag := &bag{rng: rng, kinds: kinds}
	if len(s.o.only) > 0 {
		bag.kinds = slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return !slices.Contains(s.o.only, k.name) })
	}
	for r.all.faults < s.o.faults {
		select {
		case <-stop:
			return cycles, nil
		default:
		}
		n := len(cycles) + 1
		var faults []fault
		if upgradeAt >= 0 && r.all.faults >= upgradeAt {
			upgradeAt = -1
			faults = []fault{s.upgrade()}
		} else if faults = bag.draw(s, min(1+rng.IntN(s.o.together), s.o.faults-r.all.faults)); len(faults) == 0 {
			return cycles, errors.New("no kind of fault is possible")
		}
		s.load.spans.setCycle(n)
		s.load.flows.setCycle(n)
		c := cycle{}
		var runs sync.WaitGroup
		failed := make([]error, len(faults))
		bounded, cancel := context.WithTimeout(ctx, 5*time.Minute)
		for i, f := range faults {
			c.kinds = append(c.kinds, f.kind)
			start := between(rng, 0, 1500*time.Millisecond)
			runs.Go(func() {
				if i > 0 {
					_ = retry.Sleep(ctx, start)
				}
				s.event("cycle %d: %s", n, f.what)
				if err := f.run(bounded); err != nil {
					failed[i] = fmt.Errorf("cycle %d, %s (%s): %w", n, f.kind, f.what, err)
				}
			})
		}
		runs.Wait()
		cancel()
		begun := time.Now()
		s.event("cycle %d: all is given back", n)
		err := errors.Join(failed...)
		if err == nil {
			if err = s.settle(ctx, begun, s.o.settle); err != nil {
				err = fmt.Errorf("cycle %d (%s): %w", n, strings.Join(c.kinds, ", "), err)
			}
		}
		c.settle = time.Since(begun)
		s.event("cycle %d: settled after %s: %d spans and %d flows acknowledged so far", n, c.settle.Round(time.Millisecond), s.load.spans.total(), s.load.flows.total())
		cycles = append(cycles, c)
		r.add(c)
		if err != nil || ctx.Err() != nil {
			return cycles, err
		}
	}
	return cycles, nil
}

func (r *result) add(c cycle) {
	for _, k := range c.kinds {
		if r.kinds[k] == nil {
			r.kinds[k] = &tally{}
		}
		t := r.kinds[k]
		t.faults++
		t.settle = max(t.settle, c.settle)
		r.all.faults++
	}
	r.all.settle = max(r.all.settle, c.settle)
}

// bag draws kinds so that each comes as often as the others.
type bag struct {
	rng   *rand.Rand
	kinds []kind
	left  []kind
}

// draw returns up to n faults that go together.
func (b *bag) draw(s *site, n int) (faults []fault) {
	var postponed []kind
	taken := make(map[string]bool)
	for tries := 0; len(faults) < n && tries < 3*len(b.kinds); tries++ {
		if len(b.left) == 0 {
			b.left = slices.Clone(b.kinds)
			b.rng.Shuffle(len(b.left), func(i, j int) { b.left[i], b.left[j] = b.left[j], b.left[i] })
		}
		k := b.left[0]
		b.left = b.left[1:]
		f, possible := k.plan(s, b.rng)
		if !possible {
			continue
		}
		f.kind = k.name
		if k.alone && len(faults) > 0 || slices.ContainsFunc(f.takes, func(t string) bool { return taken[t] }) {
			postponed = append(postponed, k)
			continue
		}
		for _, t := range f.takes {
			taken[t] = true
		}
		faults = append(faults, f)
		if k.alone {
			break
		}
	}
	b.left = append(postponed, b.left...)
	return faults
}

// judge compares the ledgers with the tables.
func (s *site) judge(ctx context.Context, r *result, cycles []cycle) {
	if err := s.drain(ctx, s.o.settle); err != nil {
		r.violations = append(r.violations, err.Error())
	}
	r.all.spans, r.flows = s.load.spans.total(), s.load.flows.total()
	for _, l := range []*ledger{s.load.spans, s.load.flows} {
		var found map[uint64]counts
		err := retried(ctx, func(ctx context.Context) (err error) {
			found, err = s.stored(ctx, l, 0)
			return err
		})
		if err != nil {
			r.violations = append(r.violations, err.Error())
			return
		}
		for n, items := range l.byCycle() {
			if n >= 1 && n <= len(cycles) && l == s.load.spans {
				for _, k := range distinct(cycles[n-1].kinds) {
					r.kinds[k].spans += items
				}
			}
		}
		differences := l.compare(found)
		for _, d := range differences {
			r.all.lost, r.all.twice = r.all.lost+d.lost, r.all.twice+d.twice
			if n := int(d.entry.cycle); n >= 1 && n <= len(cycles) {
				for _, k := range distinct(cycles[n-1].kinds) {
					r.kinds[k].lost, r.kinds[k].twice = r.kinds[k].lost+d.lost, r.kinds[k].twice+d.twice
				}
			}
			r.violations = append(r.violations, d.String())
		}
		s.keepRecords(ctx, l, differences)
		l.mu.Lock()
		r.violations = append(r.violations, l.refusals...)
		r.again += l.again
		l.mu.Unlock()
	}
	err := retried(ctx, func(ctx context.Context) (err error) {
		r.letters, err = s.deadLetters(ctx)
		return err
	})
	if err != nil {
		r.violations = append(r.violations, err.Error())
	}
	if r.letters != 0 {
		r.violations = append(r.violations, fmt.Sprintf("%d dead letters", r.letters))
	}
	if r.parked = s.parked(); r.parked != 0 {
		r.violations = append(r.violations, fmt.Sprintf("%d parked files", r.parked))
	}
}

func distinct(words []string) []string {
	words = slices.Sorted(slices.Values(words))
	return slices.Compact(words)
}

// judgePrograms looks at what the programs used, and whether one of ours ended by itself.
func (s *site) judgePrograms(r *result) {
	for name, u := range r.most {
		if u.memory > bounds.memory || u.goroutines > bounds.goroutines || u.files > bounds.files {
			r.violations = append(r.violations, fmt.Sprintf("%s used %.0f MiB, %.0f goroutines and %.0f files", name, u.memory/(1<<20), u.goroutines, u.files))
		}
	}
	for _, srv := range s.servers {
		r.endings += srv.endedByItself()
	}
	for _, a := range s.agents {
		r.endings += a.endedByItself()
	}
	if r.endings > 0 {
		r.violations = append(r.violations, fmt.Sprintf("servers and agents ended by themselves %d times: see events.log", r.endings))
	}
	if err := s.crashes(); err != nil {
		r.violations = append(r.violations, err.Error())
	}
}

// keepEvidence writes down what a violation is found by, beside the programs' logs.
func (s *site) keepEvidence(ctx context.Context, r *result) error {
	var b strings.Builder
	for _, group := range []struct{ group, topic string }{{spanGroup, "metaflow.spans"}, {flowGroup, "metaflow.flows"}} {
		commits, err := s.kafka.committed(ctx, group.group, group.topic)
		if err != nil {
			fmt.Fprintf(&b, "commits of %s: %v\n", group.group, err)
		}
		ends, err := s.kafka.ends(ctx, group.topic)
		if err != nil {
			fmt.Fprintf(&b, "ends of %s: %v\n", group.topic, err)
		}
		for p, c := range commits {
			words := ""
			if c.Metadata != nil {
				words = *c.Metadata
			}
			fmt.Fprintf(&b, "%s/%d: committed %d, leader epoch %d, %q; the log ends at %d\n", group.topic, p, c.Offset, c.LeaderEpoch, words, ends[p])
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, "commits.txt"), []byte(b.String()), 0o600),
		os.WriteFile(filepath.Join(s.dir, "violations.txt"), []byte(strings.Join(r.violations, "\n")+"\n"), 0o600))
}

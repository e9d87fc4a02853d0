package spool_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		appendForEver(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

const mib = 1 << 20

func open(t testing.TB, dir string, maxBytes int64) *spool.Spool {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: maxBytes}, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func closeIt(t testing.TB, s *spool.Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

var epoch = time.Unix(1_700_000_000, 0)

// entry returns entry i. Its body contains i and is padded to size.
func entry(i, size int) spool.Entry {
	body := fmt.Appendf(nil, "entry %d ", i)
	for len(body) < size {
		body = append(body, byte(i*31+len(body)*7))
	}
	return spool.Entry{Body: body, Received: epoch.Add(time.Duration(i) * time.Second)}
}

func number(t testing.TB, e spool.Entry) int {
	t.Helper()
	fields := strings.Fields(string(e.Body[:min(len(e.Body), 30)]))
	if len(fields) < 2 {
		t.Fatalf("unexpected body %q", e.Body)
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func add(t testing.TB, s *spool.Spool, entries ...spool.Entry) {
	t.Helper()
	for _, e := range entries {
		if err := s.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func next(t testing.TB, s *spool.Spool) spool.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	e, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// tryNext returns false if no entry is available.
func tryNext(t testing.TB, s *spool.Spool) (spool.Entry, bool) {
	t.Helper()
	return nextWithin(t, s, time.Millisecond)
}

// nextWithin takes the next entry, if there is one by then.
func nextWithin(t testing.TB, s *spool.Spool, d time.Duration) (spool.Entry, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	e, err := s.Next(ctx)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return e, err == nil
}

// drain takes every available entry and marks it done.
func drain(t testing.TB, s *spool.Spool) []spool.Entry {
	t.Helper()
	var all []spool.Entry
	for s.Len() > 0 {
		e, ok := tryNext(t, s)
		if !ok {
			continue // the rest is damaged, and being counted
		}
		if err := s.Done(e); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func same(a, b spool.Entry) bool {
	return bytes.Equal(a.Body, b.Body) && a.Resend == b.Resend && a.Received.Equal(b.Received)
}

func TestEntriesComeOutInOrder(t *testing.T) {
	s := open(t, t.TempDir(), 64*mib)
	var want []spool.Entry
	for i := range 50 {
		e := entry(i, i*i*100)
		e.Resend = i%3 == 0
		want = append(want, e)
	}
	want = append(want, spool.Entry{Received: epoch}) // an empty entry
	add(t, s, want...)
	if s.Len() != len(want) || !s.Oldest().Equal(epoch) {
		t.Errorf("%d entries since %s", s.Len(), s.Oldest())
	}
	for i, e := range drain(t, s) {
		if !same(e, want[i]) {
			t.Errorf("entry %d handed out with %d bytes, resend %v, %s", i, len(e.Body), e.Resend, e.Received)
		}
	}
	if s.Len() != 0 || s.Bytes() != 0 || !s.Oldest().IsZero() {
		t.Errorf("%d entries of %d bytes remain, since %s", s.Len(), s.Bytes(), s.Oldest())
	}
}

func TestBodyIsNotKept(t *testing.T) {
	s := open(t, t.TempDir(), mib)
	e := entry(1, 1000)
	want := bytes.Clone(e.Body)
	add(t, s, e)
	clear(e.Body)
	if got := next(t, s); !bytes.Equal(got.Body, want) {
		t.Errorf("handed out as %q", got.Body[:20])
	}
}

func TestReturnedEntriesComeFirst(t *testing.T) {
	s := open(t, t.TempDir(), mib)
	for i := range 5 {
		add(t, s, entry(i, 10))
	}
	a, b, c := next(t, s), next(t, s), next(t, s)
	b.Resend = true
	s.Return(c)
	s.Return(b)
	s.Return(b) // a second Return has no effect
	if err := s.Done(a); err != nil {
		t.Fatal(err)
	}
	if err := s.Done(a); err == nil {
		t.Error("Done succeeded twice")
	}
	var order []int
	for _, e := range drain(t, s) {
		order = append(order, number(t, e))
		if e.Resend != (number(t, e) == 1) {
			t.Errorf("entry %d: resend is %v", number(t, e), e.Resend)
		}
	}
	if !slices.Equal(order, []int{1, 2, 3, 4}) {
		t.Errorf("handed out in the order %v", order)
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), mib)
		got := make(chan spool.Entry)
		go func() { got <- next(t, s) }()
		synctest.Wait()
		add(t, s, entry(7, 10))
		e := <-got
		go func() { got <- next(t, s) }()
		synctest.Wait()
		s.Return(e)
		if n := number(t, <-got); n != 7 {
			t.Errorf("entry %d handed out", n)
		}
		ended := make(chan error)
		go func() {
			_, err := s.Next(t.Context())
			ended <- err
		}()
		synctest.Wait()
		closeIt(t, s)
		if err := <-ended; !errors.Is(err, spool.ErrClosed) {
			t.Errorf("Next = %v", err)
		}
		if err := s.Append(t.Context(), entry(8, 10)); !errors.Is(err, spool.ErrClosed) {
			t.Errorf("Append after Close = %v", err)
		}
		if err := s.Done(e); !errors.Is(err, spool.ErrClosed) {
			t.Errorf("Done after Close = %v", err)
		}
		closeIt(t, s)
	})
}

func TestCleanStopResendsOnlyHandedOut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, mib)
	for i := range 6 {
		add(t, s, entry(i, 10_000))
	}
	zero, _, two := next(t, s), next(t, s), next(t, s)
	for _, e := range []spool.Entry{zero, two} {
		if err := s.Done(e); err != nil {
			t.Fatal(err)
		}
	}
	closeIt(t, s)
	for range 2 { // a second start changes nothing
		s = open(t, dir, mib)
		closeIt(t, s)
	}
	s = open(t, dir, mib)
	resend := map[int]bool{}
	for _, e := range drain(t, s) {
		resend[number(t, e)] = e.Resend
	}
	// Entry 2 was done, but 1 before it was not, and the cursor holds only one
	// position.
	want := map[int]bool{1: true, 2: true, 3: false, 4: false, 5: false}
	if fmt.Sprint(resend) != fmt.Sprint(want) {
		t.Errorf("resend: %v, want %v", resend, want)
	}
}

func TestCrashResendsEverything(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, mib)
	for i := range 6 {
		add(t, s, entry(i, 10_000))
	}
	if err := s.Done(next(t, s)); err != nil {
		t.Fatal(err)
	}
	s.Crash()
	s = open(t, dir, mib)
	closeIt(t, s) // a clean stop afterwards must not clear it
	s = open(t, dir, mib)
	add(t, s, entry(6, 10))
	got := drain(t, s)
	if len(got) != 6 {
		t.Fatalf("%d entries handed out", len(got))
	}
	for i, e := range got {
		if number(t, e) != i+1 || e.Resend != (i < 5) {
			t.Errorf("entry %d at index %d: resend is %v", number(t, e), i, e.Resend)
		}
	}
}

func TestFullThenRoom(t *testing.T) {
	reg := prometheus.NewRegistry()
	dir := t.TempDir()
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: 4 * mib}, spool.Options{Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fill := func() (n int) {
		for {
			err := s.Append(t.Context(), entry(n, 20_000))
			if errors.Is(err, spool.ErrFull) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	n := fill()
	if used := s.Bytes(); used > 4*mib || used < 4*mib-50_000 {
		t.Errorf("full at %d bytes", used)
	}
	if onDisk := diskUsage(t, dir); onDisk > 4*mib+64 {
		t.Errorf("%d bytes on disk", onDisk)
	}
	for range n / 10 {
		if err := s.Done(next(t, s)); err != nil {
			t.Fatal(err)
		}
	}
	if again := fill(); again < n/10-4 {
		t.Errorf("%d entries done made room for only %d", n/10, again)
	}
	s.SetMaxBytes(2 * mib)
	if err := s.Append(t.Context(), entry(0, 10)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("Append above a lowered bound = %v", err)
	}
	s.SetMaxBytes(8 * mib)
	add(t, s, entry(0, 10))
	drain(t, s)
	if s.Bytes() != 0 {
		t.Errorf("%d bytes remain", s.Bytes())
	}
	if got := prom.Value(t, reg, "metaflow_spool_full_total"); got != 3 {
		t.Errorf("%v refusals counted, want 3", got)
	}
	if err := s.Append(t.Context(), entry(0, 9*mib)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("Append of an entry that can never fit = %v", err)
	}
}

func diskUsage(t *testing.T, dir string) (n int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, mib)
	if _, err := spool.Open(spool.Config{Dir: dir, MaxBytes: mib}, spool.Options{}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second Open = %v", err)
	}
	closeIt(t, s)
	open(t, dir, mib)
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]spool.Config{
		"dir: required":   {MaxBytes: mib},
		"max_bytes: 5":    {Dir: t.TempDir(), MaxBytes: 5},
		"not a directory": {Dir: file, MaxBytes: mib},
	} {
		if s, err := spool.Open(cfg, spool.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open = %v, %v, want an error with %q", s, err, want)
		}
	}
}

// A failed write fails only the Appends in progress, no stored entry.
func TestBrokenFileIsReplaced(t *testing.T) {
	var logged bytes.Buffer
	s, err := spool.Open(spool.Config{Dir: t.TempDir(), MaxBytes: mib}, spool.Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	add(t, s, entry(0, 100), entry(1, 100))
	s.BreakActive()
	if err := s.Append(t.Context(), entry(2, 100)); err == nil || errors.Is(err, spool.ErrFull) {
		t.Errorf("Append to a broken file = %v", err)
	}
	add(t, s, entry(3, 100))
	var got []int
	for _, e := range drain(t, s) {
		got = append(got, number(t, e))
	}
	if !slices.Equal(got, []int{0, 1, 3}) {
		t.Errorf("handed out: %v", got)
	}
}

// An entry whose sync failed was not acknowledged and is never handed out, not
// even after a restart.
func TestFailedSyncDiscardsEntries(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, mib)
	if err := s.AppendBreakingSync(entry(0, 100)); err == nil {
		t.Error("the first entry of a file was acknowledged without a sync")
	}
	add(t, s, entry(1, 100))
	if err := s.AppendBreakingSync(entry(2, 100)); err == nil {
		t.Error("an entry was acknowledged without a sync")
	}
	add(t, s, entry(3, 100))
	if s.Len() != 2 {
		t.Errorf("%d entries", s.Len())
	}
	s.Crash()
	s = open(t, dir, mib)
	var got []int
	for _, e := range drain(t, s) {
		got = append(got, number(t, e))
	}
	if !slices.Equal(got, []int{1, 3}) || s.Bytes() != 0 {
		t.Errorf("handed out: %v, %d bytes remain", got, s.Bytes())
	}
}

// Many goroutines append while many take and some return: every entry is done
// once, and each goroutine's entries come in order.
func TestConcurrentUse(t *testing.T) {
	const adders, each, takers = 8, 200, 4
	s := open(t, t.TempDir(), 64*mib)
	var adding, taking sync.WaitGroup
	for a := range adders {
		adding.Go(func() {
			for i := range each {
				if err := s.Append(t.Context(), entry(a*each+i, 1000+i*10)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var mu sync.Mutex
	seen := map[int]int{}
	var left atomic.Int64
	left.Store(adders * each)
	ctx, cancel := context.WithCancel(t.Context())
	for range takers {
		taking.Go(func() {
			for i := 0; ; i++ {
				e, err := s.Next(ctx)
				if err != nil {
					return
				}
				if i%7 == 3 {
					s.Return(e)
					continue
				}
				mu.Lock()
				seen[number(t, e)]++
				mu.Unlock()
				if err := s.Done(e); err != nil {
					t.Error(err)
				}
				if left.Add(-1) == 0 {
					cancel()
				}
			}
		})
	}
	adding.Wait()
	taking.Wait()
	cancel()
	for i := range adders * each {
		if seen[i] != 1 {
			t.Errorf("entry %d was done %d times", i, seen[i])
		}
	}
	if s.Len() != 0 || s.Bytes() != 0 {
		t.Errorf("%d entries of %d bytes remain", s.Len(), s.Bytes())
	}
}

// Under any sequence of operations, stops and crashes, no entry is lost, none
// appears that was not appended, and one that may have been handed out before
// has Resend set.
func TestNothingIsLost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "spool") //nolint:usetesting // one for each draw
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		s := open(t, dir, mib)
		defer func() { _ = s.Close() }()
		waiting := map[int]bool{} // appended and not done; true once handed out
		var out []spool.Entry
		added := 0
		restart := func() {
			out = nil
			s = open(t, dir, mib)
			if s.Len() < len(waiting) {
				rt.Fatalf("%d entries after a restart, want at least %d", s.Len(), len(waiting))
			}
		}
		take := func(within time.Duration) bool {
			e, ok := nextWithin(t, s, within)
			if !ok {
				return false
			}
			n := number(t, e)
			if wasOut, ok := waiting[n]; ok {
				if !bytes.Equal(e.Body, entry(n, len(e.Body)).Body) {
					rt.Fatalf("entry %d changed", n)
				}
				if wasOut && !e.Resend {
					rt.Fatalf("entry %d was handed out before, but Resend is not set", n)
				}
				waiting[n] = true
			} else if !e.Resend {
				rt.Fatalf("entry %d is handed out after it was done, but Resend is not set", n)
			}
			out = append(out, e)
			return true
		}
		rt.Repeat(map[string]func(*rapid.T){
			"add": func(rt *rapid.T) {
				err := s.Append(t.Context(), entry(added, rapid.SampledFrom([]int{1, 100, 5000, 30_000, 100_000}).Draw(rt, "size")))
				if err == nil {
					waiting[added] = false
				} else if !errors.Is(err, spool.ErrFull) {
					rt.Fatal(err)
				}
				added++
			},
			"take": func(*rapid.T) { take(time.Millisecond) },
			"done": func(rt *rapid.T) {
				if len(out) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(out)-1).Draw(rt, "which")
				if err := s.Done(out[i]); err != nil {
					rt.Fatal(err)
				}
				delete(waiting, number(t, out[i]))
				out = slices.Delete(out, i, i+1)
			},
			"give back": func(rt *rapid.T) {
				if len(out) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(out)-1).Draw(rt, "which")
				out[i].Resend = true
				s.Return(out[i])
				out = slices.Delete(out, i, i+1)
			},
			"stop and start": func(*rapid.T) {
				closeIt(t, s)
				restart()
			},
			"crash and start": func(*rapid.T) {
				s.Crash()
				restart()
			},
			"": func(rt *rapid.T) {
				if s.Len() < len(waiting) {
					rt.Fatalf("%d entries, want at least %d", s.Len(), len(waiting))
				}
				if s.Bytes() > mib {
					rt.Fatalf("%d bytes", s.Bytes())
				}
			},
		})
		closeIt(t, s)
		restart()
		for s.Len() > 0 {
			if !take(time.Minute) {
				rt.Fatalf("%d entries remain but none is handed out", s.Len())
			}
			e := out[len(out)-1]
			if err := s.Done(e); err != nil {
				rt.Fatal(err)
			}
			delete(waiting, number(t, e))
		}
		if len(waiting) > 0 || s.Bytes() != 0 {
			rt.Fatalf("lost: %v, %d bytes remain", waiting, s.Bytes())
		}
	})
}

func TestFormatIsStable(t *testing.T) {
	header := spool.EncodeHeader(0x0102, 1, 7, 9, 1_700_000_000_000_000_001, 0xdeadbeef)
	if got, want := hex.EncodeToString(header[:]), headerGolden; got != want {
		t.Errorf("header is %s, want %s", got, want)
	}
	if got, want := hex.EncodeToString(spool.EncodeCursor(true, 3, 4, 5, 6)), cursorGolden; got != want {
		t.Errorf("cursor is %s, want %s", got, want)
	}
}

const (
	headerGolden = "4d46737000000001000000070000000917979cfe362a0001deadbeeff04bc193"
	cursorGolden = "4d4673630000000100000000000000030000000400000000000000050000000654b355c6"
)

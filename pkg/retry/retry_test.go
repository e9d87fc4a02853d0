package retry

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var errAway = errors.New("away")

func TestPauseDoublesUpToMax(t *testing.T) {
	p := Policy{First: 100 * time.Millisecond, Max: time.Second}
	for failures, longest := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 4: 800 * time.Millisecond,
		5: time.Second, 1000: time.Second,
	} {
		least := longest
		for range 200 {
			got := p.Pause(failures)
			if got < longest/2 || got > longest {
				t.Fatalf("pause after %d failures = %s, want %s to %s", failures, got, longest/2, longest)
			}
			least = min(least, got)
		}
		if least > longest*3/4 {
			t.Errorf("the shortest of 200 pauses after %d failures is %s: they are not spread", failures, least)
		}
	}
}

// A maximum below the first pause bounds that one too, and no policy panics.
func TestPauseStaysWithinMax(t *testing.T) {
	for _, p := range []Policy{{}, {First: time.Second}, {First: time.Hour, Max: time.Minute}, {Max: time.Minute}} {
		for _, failures := range []int{1, 2, 100} {
			if got := p.Pause(failures); got < 0 || got > p.Max {
				t.Errorf("%+v: pause after %d failures = %s", p, failures, got)
			}
		}
	}
}

func TestDoRepeatsUntilSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		attempts, waited := 0, time.Duration(0)
		err := Do(t.Context(), Policy{First: time.Second, Max: 2 * time.Second}, func(context.Context) error {
			if attempts++; attempts < 4 {
				return errAway
			}
			return nil
		}, func(f Failure) {
			if f.Count != attempts || !errors.Is(f.Err, errAway) {
				t.Errorf("attempt %d failed: told %+v", attempts, f)
			}
			waited += f.Pause
		})
		if err != nil || attempts != 4 {
			t.Errorf("%d attempts, error %v; want 4 and none", attempts, err)
		}
		if took := time.Since(begun); took != waited {
			t.Errorf("it took %s, the pauses told are %s", took, waited)
		}
	})
}

func TestDoStops(t *testing.T) {
	err := Do(t.Context(), Policy{First: time.Hour, Max: time.Hour}, func(context.Context) error { return Stop(errAway) }, nil)
	if err != errAway { //nolint:errorlint // the very error, without the wrapper
		t.Errorf("Do = %#v, want the error that was stopped with", err)
	}
}

// A stop ends the pause, and the error says both why it stopped and what is wrong.
func TestDoEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		err := Do(ctx, Policy{First: time.Hour, Max: time.Hour}, func(context.Context) error { return errAway }, nil)
		if !errors.Is(err, errAway) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v, want both errors", err)
		}
		if took := time.Since(begun); took != time.Minute {
			t.Errorf("it ended after %s", took)
		}
		attempts := 0
		_ = Do(ctx, Policy{First: time.Hour, Max: time.Hour}, func(context.Context) error { attempts++; return errAway }, nil)
		if attempts != 1 {
			t.Errorf("%d attempts after the end, want 1", attempts)
		}
	})
}

// Only an attempt that lasted longer than Lasting makes the pauses start anew.
func TestDoForgetsFailuresAfterLastingAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lasting := []time.Duration{0, 0, time.Minute, time.Minute + 1, 0}
		var counts []int
		n := 0
		_ = Do(t.Context(), Policy{First: time.Millisecond, Max: time.Millisecond, Lasting: time.Minute}, func(ctx context.Context) error {
			if n == len(lasting) {
				return nil
			}
			_ = Sleep(ctx, lasting[n])
			n++
			return errAway
		}, func(f Failure) { counts = append(counts, f.Count) })
		want := []int{1, 2, 3, 1, 2}
		for i := range want {
			if i >= len(counts) || counts[i] != want[i] {
				t.Fatalf("failures in a row = %v, want %v", counts, want)
			}
		}
	})
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		if err := Sleep(t.Context(), time.Second); err != nil || time.Since(begun) != time.Second {
			t.Errorf("Sleep = %v after %s", err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 2*time.Second {
			t.Errorf("Sleep = %v after %s", err, time.Since(begun))
		}
	})
}

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer cancel()
		begun := time.Now()
		var at []time.Duration
		Every(ctx, time.Second, func() { at = append(at, time.Since(begun)) })
		if want := []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("called after %v, want %v", at, want)
		}
	})
}

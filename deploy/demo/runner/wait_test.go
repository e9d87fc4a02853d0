package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAwaitStored(t *testing.T) {
	down := errors.New("clickhouse is down")
	type answer struct {
		n   uint64
		err error
	}
	tests := map[string]struct {
		answers []answer // the last one repeats
		seen    []uint64
		err     string // substring, empty for success
		after   time.Duration
	}{
		"all stored at once":                {[]answer{{100, nil}}, nil, "", 0},
		"stored one after another":          {[]answer{{0, nil}, {40, nil}, {40, nil}, {90, nil}, {100, nil}}, []uint64{40, 90}, "", 4 * storedPoll},
		"more than expected":                {[]answer{{101, nil}}, nil, "", 0},
		"clickhouse is down for a while":    {[]answer{{40, nil}, {0, down}, {0, down}, {100, nil}}, []uint64{40}, "", 3 * storedPoll},
		"some are never stored":             {[]answer{{0, nil}, {99, nil}}, []uint64{99}, "99 of 100 acknowledged spans are stored, and nothing was added for 10s", storedPoll + 10*time.Second},
		"clickhouse stays down":             {[]answer{{0, down}}, nil, "the last query failed: clickhouse is down", 10 * time.Second},
		"nothing is stored, without errors": {[]answer{{0, nil}}, nil, "0 of 100 acknowledged spans", 10 * time.Second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen []uint64
				asked, start := 0, time.Now()
				err := awaitStored(t.Context(), 100, 10*time.Second,
					func(context.Context) (uint64, error) {
						a := tc.answers[min(asked, len(tc.answers)-1)]
						asked++
						return a.n, a.err
					},
					func(stored uint64) { seen = append(seen, stored) })
				if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Errorf("awaitStored = %v, want %q", err, tc.err)
				}
				if got := time.Since(start); got != tc.after {
					t.Errorf("it took %v, want %v", got, tc.after)
				}
				if diff := cmp.Diff(tc.seen, seen); diff != "" {
					t.Errorf("progress (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestAwaitStoredEndsWithItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		died := errors.New("the server ended too early")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(died) })
		err := awaitStored(ctx, 100, time.Minute,
			func(context.Context) (uint64, error) { return 0, nil }, func(uint64) {})
		if !errors.Is(err, died) {
			t.Errorf("awaitStored = %v, want the cause of the cancellation", err)
		}
	})
}

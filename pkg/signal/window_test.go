package signal_test

import (
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

func TestWindowIncludesBothEnds(t *testing.T) {
	now := time.Unix(1_700_000_000, 7)
	w := signal.WindowAt(now, time.Hour, time.Minute)
	earliest, latest := uint64(now.Add(-time.Hour).UnixNano()), uint64(now.Add(time.Minute).UnixNano())
	for at, want := range map[uint64]bool{
		earliest - 1: false, earliest: true, earliest + 1: true,
		latest - 1: true, latest: true, latest + 1: false,
	} {
		if got := w.Contains(at); got != want {
			t.Errorf("Contains(%d) = %t in %+v", at, got, w)
		}
	}
}

package wait

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPollGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := Poll(time.Minute, nil, func() error { return errors.New("still away") })
		if err == nil || !strings.Contains(err.Error(), "still away") || time.Since(begun) != time.Minute {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		ended := make(chan struct{})
		close(ended)
		if err := Poll(time.Minute, ended, func() error { return errors.New("away") }); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("after the program has ended: %v", err)
		}
	})
}

func TestUntilAsksAgain(t *testing.T) {
	asked := 0
	Until(t, "the third time", func() bool { asked++; return asked == 3 })
	NoError(t, func() error {
		if asked++; asked < 5 {
			return errors.New("not yet")
		}
		return nil
	})
	if asked != 5 {
		t.Errorf("asked %d times", asked)
	}
}

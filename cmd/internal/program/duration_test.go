package program

import (
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestDurationVar(t *testing.T) {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	var d time.Duration
	DurationVar(f, &d, "since", time.Minute, "")
	if d != time.Minute {
		t.Errorf("the default is %s", d)
	}
	if err := f.Parse([]string{"--since", "2d12h"}); err != nil || d != 60*time.Hour {
		t.Errorf("2d12h is %s (%v)", d, err)
	}
	if err := f.Parse([]string{"--since", "2 days"}); err == nil {
		t.Error("2 days is a duration")
	}
}

package program

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// duration is a flag with the syntax of the configuration's durations.
type duration time.Duration

func (d *duration) String() string { return values.FormatDuration(time.Duration(*d)) }
func (*duration) Type() string     { return "duration" }

// Set implements pflag.Value.
func (d *duration) Set(text string) error {
	parsed, err := values.Duration(text)
	if err != nil {
		return err
	}
	*d = duration(parsed)
	return nil
}

// DurationVar adds a flag for a duration, which may have days and weeks as the keys of the
// configuration do.
func DurationVar(f *pflag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	f.Var((*duration)(p), name, usage)
}

package program

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Log configures logging, which goes to standard error.
type Log struct {
	// Level: debug, info, warn or error.
	Level string `mapstructure:"level" doc:"debug, info, warn or error"`
	// Format: json or text.
	Format string `mapstructure:"format" doc:"json or text"`
}

// DefaultLog returns the configuration for a program run by a supervisor.
func DefaultLog() Log { return Log{Level: "info", Format: "json"} }

// Validate reports all problems, each by its key.
func (l Log) Validate() error {
	var errs []error
	if _, err := l.level(); err != nil {
		errs = append(errs, err)
	}
	if l.Format != "json" && l.Format != "text" {
		errs = append(errs, fmt.Errorf("format: %q is neither json nor text", l.Format))
	}
	return errors.Join(errs...)
}

func (l Log) level() (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return 0, fmt.Errorf("level: %q is not debug, info, warn or error", l.Level)
	}
	return level, nil
}

// Logger returns a logger that writes to w. The Log must be valid. Durations are
// text with their unit. Warnings and errors that repeat are counted, see counted.
func (l Log) Logger(w io.Writer) *slog.Logger {
	level, _ := l.level()
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: withUnit}
	if l.Format == "text" {
		return slog.New(newCounted(slog.NewTextHandler(w, opts)))
	}
	return slog.New(newCounted(slog.NewJSONHandler(w, opts)))
}

// withUnit writes durations as text such as "1.5s"; JSON would have them as a
// bare number.
func withUnit(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

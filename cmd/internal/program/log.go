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

// Logger returns a logger that writes to w. The Log must be valid.
func (l Log) Logger(w io.Writer) *slog.Logger {
	level, _ := l.level()
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

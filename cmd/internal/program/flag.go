package program

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
)

// refusals continue a sentence about a value that a flag of pflag's type refused, whose own
// texts name functions of Go.
var refusals = map[string]error{
	"bool":        errors.New("is neither true nor false"),
	"int":         errors.New("is not a whole number"),
	"uint16":      errors.New("is not a whole number from 0 to 65535"),
	"stringSlice": errors.New("is not a list separated by commas"),
}

// SetFlag sets a flag that is not on the command line, but in source, such as a variable.
func SetFlag(flag *pflag.Flag, text, source string) error {
	if err := flag.Value.Set(text); err != nil {
		return refused(source, flag, text, err)
	}
	return nil
}

// refused says that flag refused a text, which is in source, and what it takes. Types of our
// own say that in their errors, which continue a sentence about the value.
func refused(source string, flag *pflag.Flag, text string, cause error) error {
	if known := refusals[flag.Value.Type()]; known != nil {
		cause = known
	}
	return &UsageError{fmt.Errorf("%s %q %w", source, text, cause)}
}

// flagError is the error of a command line that cannot be parsed.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return refused("--"+invalid.GetFlag().Name, invalid.GetFlag(), invalid.GetValue(), invalid.Unwrap())
	}
	return &UsageError{err}
}

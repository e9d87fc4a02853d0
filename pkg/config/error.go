package config

import (
	"errors"
	"fmt"
	"strings"
)

// Error holds all problems of a configuration. Programs exit with status 2 on
// it.
type Error struct {
	Problems []Problem
}

// Problem is one problem of a configuration.
type Problem struct {
	Key    string // the key, or an unknown variable; empty if it concerns neither
	Text   string // the problem, with the value found
	Source string // where the value was set: a file and line, a variable, a flag; empty if unknown
}

func (p Problem) String() string {
	s := p.Text
	if p.Key != "" {
		s = p.Key + ": " + s
	}
	if p.Source != "" {
		s += " (" + p.Source + ")"
	}
	return s
}

// Error returns one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Section prefixes every problem that a section's Validate joined with the
// section's name, so that keys read as in the file. Section(name, nil) is nil.
func Section(name string, err error) error {
	var errs []error
	for _, e := range leaves(err) {
		errs = append(errs, fmt.Errorf("%s.%w", name, e))
	}
	return errors.Join(errs...)
}

// leaves returns the errors joined in err.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, leaves(e)...)
	}
	return all
}

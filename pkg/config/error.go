package config

import (
	"errors"
	"fmt"
	"strings"
)

// Error is everything that is wrong with a configuration. Programs exit with
// status 2 on it.
type Error struct {
	Problems []Problem
}

// Problem is one thing that is wrong.
type Problem struct {
	Key    string // the key, or the variable that names none; empty when it is about neither
	Text   string // what is wrong, with the value found
	Source string // where the value was set: a file and line, a variable, a flag; empty when unknown
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

// Error has one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Section puts the name of a section before every problem that a section's
// Validate joined, so that its keys read as in the file. Section(name, nil) is nil.
func Section(name string, err error) error {
	var errs []error
	for _, e := range leaves(err) {
		errs = append(errs, fmt.Errorf("%s.%w", name, e))
	}
	return errors.Join(errs...)
}

// leaves takes errors.Join apart.
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

//go:build !linux

package namespaces

import (
	"errors"
	"os/exec"
)

// Missing returns what this machine lacks.
func Missing() string { return "network namespaces need Linux" }

// Isolate does nothing: there are no network namespaces.
func Isolate(*exec.Cmd) {}

// Enter returns an error: there are no network namespaces.
func Enter(int, func() error) error { return errors.New("network namespaces need Linux") }

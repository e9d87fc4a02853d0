//go:build !linux

package netlab

import (
	"errors"
	"os/exec"
)

// Missing returns what a lab lacks on this machine.
func Missing() string { return "network namespaces need Linux" }

func isolate(*exec.Cmd) {}

func enter(int, func() error) error { return errors.New("network namespaces need Linux") }

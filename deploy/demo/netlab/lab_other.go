//go:build !linux

package netlab

import (
	"errors"
	"os/exec"
)

// Missing says what there is not for a lab, empty when everything is there.
func Missing() string { return "network namespaces take Linux" }

func isolate(*exec.Cmd) {}

func enter(int, func() error) error { return errors.New("network namespaces take Linux") }

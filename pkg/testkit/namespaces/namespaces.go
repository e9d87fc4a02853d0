// Package namespaces runs programs in network namespaces, for tests and demos
// that need a network of their own. It needs Linux, root, and the programs ip
// and nft.
package namespaces

import (
	"fmt"
	"os/exec"
	"strings"
)

// Feed runs a program with the given input and waits for it. Its error contains
// what the program printed.
func Feed(input, program string, args ...string) error {
	cmd := exec.Command(program, args...) //nolint:gosec // ip and nft
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", cmd, err, out)
	}
	return nil
}

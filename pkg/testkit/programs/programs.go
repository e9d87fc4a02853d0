// Package programs builds the programs of this module for the tests that run
// them.
package programs

import (
	"fmt"
	"os"
	"os/exec"
)

// Build writes the programs of some packages into dir, as releases are built.
// Packages are paths from root, where the module is.
func Build(root, dir string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, packages...)...) //nolint:gosec // a test names the packages
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", packages, err, out)
	}
	return nil
}

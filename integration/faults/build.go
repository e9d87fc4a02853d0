package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build builds the programs of the module at root into dir.
func build(root, dir, overlay string) error {
	args := []string{"build", "-o", dir + "/"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./cmd/...")...) //nolint:gosec // our own programs
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs of %s: %w\n%s", root, err, out)
	}
	return nil
}

// checkOut writes the files of a commit into dir.
func checkOut(root, commit, dir string) error {
	archive := exec.Command("git", "-C", root, "archive", commit) //nolint:gosec // the operator names the commit
	unpack := exec.Command("tar", "-x", "-C", dir)                //nolint:gosec // a directory of ours
	pipe, err := archive.StdoutPipe()
	if err != nil {
		return err
	}
	var said strings.Builder
	archive.Stderr, unpack.Stderr, unpack.Stdin = &said, &said, pipe
	if err := archive.Start(); err != nil {
		return err
	}
	unpacked, archived := unpack.Run(), archive.Wait()
	if unpacked != nil || archived != nil {
		return fmt.Errorf("check out %s: %w: %s", commit, errors.Join(archived, unpacked), said.String())
	}
	return nil
}

// prepare builds what a run needs into dir, unless it is there: today's programs, and those of the
// earlier commit.
func (o *options) prepare(root, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	o.bin = filepath.Join(dir, "bin")
	if o.oldCommit != "" {
		o.oldBin = filepath.Join(dir, "old-bin")
	}
	complete := filepath.Join(dir, "complete")
	if _, err := os.Stat(complete); err == nil {
		return nil
	}
	if err := o.buildAll(root, dir); err != nil {
		return err
	}
	return os.WriteFile(complete, nil, 0o600)
}

func (o *options) buildAll(root, dir string) (err error) {
	overlay := ""
	if o.overlay {
		if overlay, err = writeOverlay(dir); err != nil {
			return err
		}
	}
	if err := build(root, o.bin, overlay); err != nil {
		return err
	}
	if o.oldCommit == "" {
		return nil
	}
	source := filepath.Join(dir, "old")
	if err := os.MkdirAll(source, 0o750); err != nil {
		return err
	}
	if err := checkOut(root, o.oldCommit, source); err != nil {
		return err
	}
	return build(source, o.oldBin, overlay)
}

// findRoot returns the directory of the module.
func findRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	return filepath.Dir(strings.TrimSpace(string(out))), err
}

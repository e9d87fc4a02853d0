package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Names of Maven's outputs in the build directory.
const (
	shopJar  = "shop.jar"
	agentJar = "opentelemetry-javaagent.jar"
)

// build runs Maven unless it has already built these sources.
func build(ctx context.Context, o options, progress func(string, ...any)) error {
	for _, needed := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(needed); err != nil {
			return errors.New("the shop is built with Maven: mvn and a JDK, 17 or newer, must be on the PATH (" + needed + " is not)")
		}
	}
	target, err := filepath.Abs(o.build)
	if err != nil {
		return err
	}
	sum, err := fingerprint(o.source)
	if err != nil {
		return err
	}
	stamp := filepath.Join(target, "sources.sha256")
	if built, err := os.ReadFile(stamp); err == nil && string(built) == sum {
		return nil
	}
	progress("building the shop with Maven; the first build downloads dependencies")
	cmd := exec.CommandContext(ctx, "mvn", "--batch-mode", "--quiet", "package", "-Dshop.build="+target) //nolint:gosec // a directory that the user names
	cmd.Dir = o.source
	building, built := context.WithCancel(ctx)
	defer built()
	go retry.Every(building, stillInterval, func() { progress("Maven is still building") })
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the shop: %w\n%s", err, out)
	}
	return os.WriteFile(stamp, []byte(sum), 0o600)
}

// fingerprint returns a hash of everything that Maven reads in dir.
func fingerprint(dir string) (string, error) {
	hash := sha256.New()
	root := os.DirFS(dir)
	add := func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(root, path)
		fmt.Fprintf(hash, "%s %d\n%s", path, len(text), text)
		return err
	}
	for _, part := range []string{"pom.xml", "src"} {
		if err := fs.WalkDir(root, part, add); err != nil {
			return "", fmt.Errorf("read the shop's sources: %w", err)
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), nil
}

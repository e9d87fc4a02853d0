package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stubs puts programs on the PATH that write down their arguments and make the files that
// are asked of them. It returns the environment and what was called.
func stubs(t *testing.T) (env []string, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	const stub = `#!/bin/sh
printf '%s GOARCH=%s\n' "$(basename "$0") $*" "${GOARCH:-}" >>CALLS
case "$*" in "env GOARCH") echo amd64;; esac
while [ $# -gt 0 ]; do
	case "$1" in
	-o) case "$2" in */) touch "$2/metaflow-server" ;; *) mkdir -p "$(dirname "$2")"; touch "$2" ;; esac ;;
	-output) touch "$2" ;;
	--destination) touch "$2/metaflow-0.1.0.tgz" ;;
	--target) [ ! -d "$2" ] || touch "$2/package-$GOARCH$ARCH.deb" ;;
	--output) file=${2#type=oci,dest=}; [ "$file" = "$2" ] || touch "$file" ;;
	esac
	shift
done
`
	for _, name := range []string{"go", "docker"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(stub, "CALLS", log)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "GO="+filepath.Join(dir, "go")), func() string { return read(t, log) }
}

// A release has all its parts for all architectures, and a checksum of each.
func TestRelease(t *testing.T) {
	env, calls := stubs(t)
	out := filepath.Join(t.TempDir(), "release")
	release := exec.CommandContext(t.Context(), "../release/release.sh", out)
	release.Env = append(env, "VERSION=9.8.7", "REGISTRY=registry.example.com/metaflow")
	if text, err := release.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	called := calls()
	for _, want := range []string{
		`go build .* \./cmd/\.\.\. GOARCH=amd64`, `go build .* \./cmd/\.\.\. GOARCH=arm64`,
		`helm/v3/cmd/helm@\S+ package deploy/helm/metaflow --app-version 9\.8\.7`,
		`helm/v3/cmd/helm@\S+ push \S+\.tgz oci://registry\.example\.com/metaflow/charts`,
		`docker buildx build --platform linux/amd64,linux/arm64 .*--target server .*name=registry\.example\.com/metaflow/metaflow-server:9\.8\.7`,
		`docker buildx build --platform linux/amd64,linux/arm64 .*--target agent .*name=registry\.example\.com/metaflow/metaflow-agent:9\.8\.7`,
	} {
		if !regexp.MustCompile(want).MatchString(called) {
			t.Errorf("nothing called %s in\n%s", want, called)
		}
	}
	sums := read(t, filepath.Join(out, "SHA256SUMS"))
	for _, file := range []string{
		"metaflow-9.8.7-linux-amd64.tar.gz", "metaflow-9.8.7-linux-arm64.tar.gz", "metaflow-0.1.0.tgz", "package-amd64.deb", "package-arm64.deb",
		"metaflow-server.cdx.json", "metaflow-agent.cdx.json", "metaflow-ctl.cdx.json", "metaflow-server-9.8.7.oci.tar", "metaflow-agent-9.8.7.oci.tar",
	} {
		if !strings.Contains(sums, "  "+file+"\n") {
			t.Errorf("no checksum of %s in\n%s", file, sums)
		}
	}
	again := exec.CommandContext(t.Context(), "../release/release.sh", out)
	again.Env = env
	if text, err := again.CombinedOutput(); err == nil || !strings.Contains(string(text), "is not empty") {
		t.Errorf("a second release into the directory: %v\n%s", err, text)
	}
}

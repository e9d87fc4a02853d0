package deploytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const systemdDir = "../systemd"

// install runs the install script with stub programs and returns the directory
// that stands for the host's root.
func install(t *testing.T, root string, args ...string) string {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"metaflow-server", "metaflow-agent", "metaflow-ctl"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(systemdDir, "install.sh"), append([]string{"--bin", bin}, args...)...)
	cmd.Env = append(os.Environ(), "DESTDIR="+root)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install.sh %v: %v\n%s", args, err, out)
	}
	return root
}

func tree(t *testing.T, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestInstallScript(t *testing.T) {
	root := install(t, t.TempDir(), "server", "agent", "ctl")
	want := []string{
		"/etc/metaflow/metaflow-agent.env", "/etc/metaflow/metaflow-agent.yaml",
		"/etc/metaflow/metaflow-server.env", "/etc/metaflow/metaflow-server.yaml",
		"/usr/bin/metaflow-agent", "/usr/bin/metaflow-cli", "/usr/bin/metaflow-ctl", "/usr/bin/metaflow-server",
		"/usr/lib/systemd/system/metaflow-agent.service", "/usr/lib/systemd/system/metaflow-server.service", "/usr/lib/systemd/system/metaflow-standalone.service",
		"/usr/lib/sysusers.d/metaflow-agent.conf", "/usr/lib/sysusers.d/metaflow-server.conf",
		"/usr/lib/tmpfiles.d/metaflow-agent.conf", "/usr/lib/tmpfiles.d/metaflow-server.conf",
		"/usr/share/doc/metaflow-agent/agent-group.yaml", "/usr/share/doc/metaflow-agent/copyright",
		"/usr/share/doc/metaflow-ctl/copyright", "/usr/share/doc/metaflow-server/copyright",
		"/usr/share/doc/metaflow-server/tables.cluster.sql", "/usr/share/doc/metaflow-server/tables.sql",
	}
	if got := tree(t, root); !slices.Equal(got, want) {
		t.Errorf("installed %v, want %v", got, want)
	}
	mine := filepath.Join(root, "etc/metaflow/metaflow-server.yaml")
	if err := os.WriteFile(mine, []byte("roles: [gateway]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install(t, root, "server")
	if got := read(t, mine); got != "roles: [gateway]\n" {
		t.Errorf("a second installation overwrote the configuration:\n%s", got)
	}
	install(t, root, "--uninstall", "server", "agent", "ctl")
	if got := tree(t, root); !slices.Equal(got, want[:4]) {
		t.Errorf("--uninstall left %v, want the configuration", got)
	}
}

func TestInstallScriptRejects(t *testing.T) {
	for name, args := range map[string][]string{"nothing": {}, "an unknown part": {"sever"}, "no directory": {"server", "--bin"}} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(filepath.Join(systemdDir, "install.sh"), args...).CombinedOutput()
			if exit := new(exec.ExitError); err == nil || !asExit(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "install.sh") {
				t.Errorf("error %v and\n%s", err, out)
			}
		})
	}
}

func asExit(err error, exit **exec.ExitError) (ok bool) {
	*exit, ok = err.(*exec.ExitError) //nolint:errorlint // as exec returns it
	return ok
}

// systemd accepts the units, knows every setting in them and rates them as well
// sandboxed; its tools accept the users and directories.
func TestUnits(t *testing.T) {
	for _, tool := range []string{"systemd-analyze", "systemd-sysusers", "systemd-tmpfiles"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s on the PATH", tool)
		}
	}
	root := install(t, t.TempDir(), "server", "agent")
	for _, target := range []string{"sysinit", "basic", "shutdown", "multi-user", "network-online"} {
		file := filepath.Join(root, "usr/lib/systemd/system", target+".target")
		if err := os.WriteFile(file, []byte("[Unit]\nDescription="+target+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(unit string) (string, error) {
		out, err := exec.Command("systemd-analyze", "verify", "--root="+root, unit).CombinedOutput()
		return string(out), err
	}
	for unit, exposure := range map[string]string{"metaflow-server.service": "15", "metaflow-standalone.service": "20", "metaflow-agent.service": "31"} {
		if out, err := verify(unit); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--root="+root, "--threshold="+exposure, unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", unit, err, out)
		}
	}
	unit := filepath.Join(root, "usr/lib/systemd/system/metaflow-server.service")
	if err := os.WriteFile(unit, []byte(strings.Replace(read(t, unit), "PrivateTmp=", "PrivateTemp=", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := verify("metaflow-server.service"); !strings.Contains(out, "PrivateTemp") {
		t.Errorf("systemd-analyze verify accepts an unknown setting:\n%s", out)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to create users and directories")
	}
	if out, err := exec.Command("systemd-sysusers", "--root="+root).CombinedOutput(); err != nil {
		t.Fatalf("systemd-sysusers: %v\n%s", err, out)
	}
	if out, err := exec.Command("systemd-tmpfiles", "--root="+root, "--create").CombinedOutput(); err != nil {
		t.Fatalf("systemd-tmpfiles: %v\n%s", err, out)
	}
	users := read(t, filepath.Join(root, "etc/passwd"))
	for _, name := range []string{"metaflow-server", "metaflow-agent"} {
		if !strings.Contains(users, name+":") {
			t.Errorf("no user %s in\n%s", name, users)
		}
		if text := read(t, filepath.Join(systemdDir, name+".service")); !strings.Contains(text, "User="+name+"\n") {
			t.Errorf("%s runs as another user", name)
		}
	}
	if info, err := os.Stat(filepath.Join(root, "var/lib/metaflow-agent")); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("the spool's directory: %v, %v", info, err)
	}
}

// The files of a new installation pass the programs' checks, and the programs
// know the units' command lines.
func TestHostConfiguration(t *testing.T) {
	standalone := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/metaflow-server (.*)$`).FindStringSubmatch(read(t, filepath.Join(systemdDir, "metaflow-standalone.service")))
	if standalone == nil {
		t.Fatal("metaflow-standalone.service starts something else")
	}
	knowsCommand(t, "metaflow-server", strings.Fields(standalone[1]))
	for _, name := range []string{"metaflow-server", "metaflow-agent"} {
		t.Run(name, func(t *testing.T) {
			if err := checkConfig(t, name, read(t, filepath.Join(systemdDir, name+".yaml"))); err != nil {
				t.Error(err)
			}
			known := variables(t, name)
			for _, v := range regexp.MustCompile(`(?m)^#?(METAFLOW_[A-Z_]+)=`).FindAllStringSubmatch(read(t, filepath.Join(systemdDir, name+".env")), -1) {
				if !strings.Contains(known, v[1]+"\n") {
					t.Errorf("%s.env sets %s, which is not a key", name, v[1])
				}
			}
			line := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/(\S+) (.*)$`).FindStringSubmatch(read(t, filepath.Join(systemdDir, name+".service")))
			if line == nil || line[1] != name {
				t.Fatalf("ExecStart is %v", line)
			}
			knowsCommand(t, name, strings.Fields(line[2]))
		})
	}
}

// knowsCommand fails the test if a program does not know a command or a flag.
func knowsCommand(t *testing.T, name string, args []string) {
	t.Helper()
	if out, err := run(t, name, nil, append(slices.Clone(args), "--help")...); err != nil || !strings.Contains(out, strings.Join(commandsOf(args), " ")) {
		t.Errorf("%s does not know %v: %v\n%s", name, args, err, out)
	}
}

// commandsOf returns the words before the first flag.
func commandsOf(args []string) []string {
	if i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }); i >= 0 {
		return args[:i]
	}
	return args
}

// Packages and the install script install the same files at the same places.
func TestPackages(t *testing.T) {
	script := tree(t, install(t, t.TempDir(), "server", "agent", "ctl"))
	var packed []string
	files, err := filepath.Glob(filepath.Join(systemdDir, "nfpm", "*.yaml"))
	if err != nil || len(files) != 3 {
		t.Fatalf("packages %v, %v", files, err)
	}
	for _, file := range files {
		var p struct {
			Contents []struct{ Src, Dst, Type string }
			Scripts  map[string]string
		}
		if err := yaml.Unmarshal([]byte(read(t, file)), &p); err != nil {
			t.Fatal(err)
		}
		for _, c := range p.Contents {
			packed = append(packed, c.Dst)
			if strings.HasPrefix(c.Src, "deploy/") {
				if _, err := os.Stat(filepath.Join(repository, c.Src)); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
			if config := strings.HasPrefix(c.Dst, "/etc/"); config != (c.Type == "config|noreplace") {
				t.Errorf("%s: %s is of type %q", file, c.Dst, c.Type)
			}
		}
		for _, s := range p.Scripts {
			if _, err := os.Stat(filepath.Join(systemdDir, "nfpm", filepath.Base(s))); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	slices.Sort(packed)
	if !slices.Equal(packed, script) {
		t.Errorf("packages install %v\nthe script installs %v", packed, script)
	}
}

// A POSIX shell can parse the scripts.
func TestShellScripts(t *testing.T) {
	var scripts []string
	for _, pattern := range []string{"*.sh", "nfpm/*.sh"} {
		found, err := filepath.Glob(filepath.Join(systemdDir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		scripts = append(scripts, found...)
	}
	if len(scripts) < 5 {
		t.Errorf("scripts %v", scripts)
	}
	for _, s := range scripts {
		if out, err := exec.Command("sh", "-n", s).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", s, err, out)
		}
	}
}

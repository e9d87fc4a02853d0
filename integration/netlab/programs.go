//go:build linux

package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

//go:embed programs
var sources embed.FS

// Numbers of the hosts, which end their addresses.
const (
	visitorsNumber = 10 + iota
	nginxNumber
	apiNumber
	ordersNumber
	stockNumber
	priceNumber
	reportsNumber
	dbNumber
	cacheNumber
	dnsNumber
	batchNumber
	sinkNumber
)

var hostNumbers = map[string]int{
	"visitors": visitorsNumber, "nginx": nginxNumber, "api": apiNumber, "orders": ordersNumber, "stock": stockNumber, "price": priceNumber,
	"reports": reportsNumber, "db": dbNumber, "cache": cacheNumber, "dns": dnsNumber, "batch": batchNumber, "sink": sinkNumber,
}

// missing lists what the machine lacks.
func missing(o options) (list []string) {
	if m := namespaces.Missing(); m != "" {
		return []string{m}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		list = append(list, "no /dev/net/tun, which delays packets")
	}
	if _, err := exec.LookPath("tc"); err != nil {
		list = append(list, "the program tc is not installed (Debian package iproute2)")
	}
	for _, name := range []string{"metaflow-server", "metaflow-agent", "metaflow-ctl"} {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			list = append(list, fmt.Sprintf("no %s in %s (make build)", name, o.bin))
		}
	}
	p := paths{o.programs}
	for _, each := range []struct{ name, file string }{
		{"nginx", p.nginx()},
		{"Redis", p.redis()},
		{"PostgreSQL", p.postgres("postgres")},
		{"gunicorn", p.python("gunicorn")},
		{"opentelemetry-instrument", p.python("opentelemetry-instrument")},
		{"express", filepath.Join(o.programs, "node/node_modules/express")},
		{"@opentelemetry/auto-instrumentations-node", filepath.Join(o.programs, "node/node_modules/@opentelemetry/auto-instrumentations-node")},
	} {
		if _, err := os.Stat(each.file); err != nil {
			list = append(list, fmt.Sprintf("no %s in %s (make netlab-programs)", each.name, o.programs))
		}
	}
	if _, err := exec.LookPath("node"); err != nil {
		list = append(list, "the program node is not on the PATH")
	}
	return list
}

// paths finds the real programs below the directory of fetch.sh.
type paths struct{ dir string }

func (p paths) nginx() string { return filepath.Join(p.dir, "debian/usr/sbin/nginx") }
func (p paths) redis() string { return filepath.Join(p.dir, "debian/usr/bin/redis-server") }
func (p paths) postgres(name string) string {
	return filepath.Join(p.dir, "debian/usr/lib/postgresql/15/bin", name)
}
func (p paths) python(name string) string { return filepath.Join(p.dir, "python/bin", name) }

// libraries are the directories of the libraries that Debian's programs bring
// along.
func (p paths) libraries() string {
	found, _ := filepath.Glob(filepath.Join(p.dir, "debian/usr/lib/*-linux-gnu*")) // the pattern is valid
	more, _ := filepath.Glob(filepath.Join(p.dir, "debian/lib/*-linux-gnu*"))
	return strings.Join(append(found, more...), ":")
}

// program is a running program of the lab.
type program struct {
	name string
	argv []string
	env  []string
	cmd  *exec.Cmd
	log  *record
	done chan struct{}
}

// record keeps what a program prints.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
	copy io.Writer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.copy != nil {
		_, _ = r.copy.Write(p)
	}
	if r.text.Len() < 1<<20 {
		r.text.Write(p)
	}
	return len(p), nil
}

// tail returns the last lines.
func (r *record) tail() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(r.text.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// launch starts a program, on a host unless that is nil.
func (l *lab) launch(name string, at *host, uid int, env []string, argv ...string) error {
	p := &program{name: name, argv: argv, env: slices.Clip(env), cmd: exec.Command(argv[0], argv[1:]...), log: &record{}, done: make(chan struct{})} //nolint:gosec // the lab's own commands
	p.cmd.Env = append(os.Environ(), env...)
	if l.o.keep != "" {
		file, err := os.OpenFile(filepath.Join(l.o.keep, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		p.log.copy = file
	}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if at != nil {
		within(p.cmd, at.pid(), l.dir, uid)
		p.cmd.Dir = l.dir
	}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	l.programs[name] = p
	return nil
}

// signal sends a signal to a program and its children.
func (p *program) signal(s syscall.Signal) error {
	children, err := descendants(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range append(children, p.cmd.Process.Pid) {
		errs = append(errs, syscall.Kill(pid, s))
	}
	return errors.Join(errs...)
}

// descendants returns the children of a process, and theirs.
func descendants(pid int) (all []int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err != nil {
			return nil, err
		}
		below, err := descendants(child)
		if err != nil {
			return nil, err
		}
		all = append(append(all, child), below...)
	}
	return all, nil
}

// listening returns nil once a program listens on a host's port. It does not
// connect: the views would report connects that are refused.
func (l *lab) listening(at *host, port int) error {
	const listen = "0A" // the kernel's number of the state
	suffix := fmt.Sprintf(":%04X", port)
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", at.pid(), table))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			// A number, the local address, the peer's, and the state.
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == listen {
				return nil
			}
		}
	}
	return fmt.Errorf("nothing listens on port %d of %s", port, at.name)
}

// otel returns the environment of an instrumented service.
func otel(name string) []string {
	return []string{
		"OTEL_SERVICE_NAME=" + name,
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + gateway.String() + ":38086",
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none",
		"OTEL_BSP_SCHEDULE_DELAY=500",
		"OTEL_NODE_RESOURCE_DETECTORS=env", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=otel",
		"OTEL_SEMCONV_STABILITY_OPT_IN=http,database",
	}
}

// startServices starts the real programs and waits until they answer.
func (l *lab) startServices() error {
	dir, err := filepath.Abs(l.o.programs)
	if err != nil {
		return err
	}
	p := paths{dir}
	node, err := exec.LookPath("node")
	if err != nil {
		return err
	}
	if err := l.initPostgres(p); err != nil {
		return err
	}
	debian := []string{"LD_LIBRARY_PATH=" + p.libraries()}
	if err := os.Symlink(filepath.Join(dir, "node/node_modules"), filepath.Join(l.dir, "node_modules")); err != nil {
		return err
	}
	nodeEnv := func(name string) []string {
		return append(otel(name), "NODE_OPTIONS=--require @opentelemetry/auto-instrumentations-node/register", "NODE_ENV=production")
	}
	gunicorn := func(app, name string, more ...string) []string {
		return append([]string{p.python("python"), p.python("opentelemetry-instrument"), p.python("gunicorn"), "-b", "0.0.0.0:8000", "--chdir", l.dir, "--name", name, "--timeout", "60", "--control-socket", filepath.Join(l.dir, name+".sock")}, append(more, app)...)
	}
	for _, each := range []struct {
		name string
		uid  int
		port int
		env  []string
		argv []string
	}{
		{"db", nobody, 5432, debian, []string{p.postgres("postgres"), "-D", filepath.Join(l.dir, "db"), "-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "jit=off"}},
		{"cache", 0, 6379, debian, []string{p.redis(), "--save", "", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", l.dir}},
		{"stock", 0, 3000, nodeEnv("stock"), []string{node, filepath.Join(l.dir, "stock.js")}},
		{"price", 0, 50051, otel("price"), []string{p.python("python"), p.python("opentelemetry-instrument"), p.python("python"), filepath.Join(l.dir, "price.py")}},
		{"orders", 0, 8000, otel("orders"), gunicorn("orders:app", "orders", "-k", "gthread", "--threads", "12", "--keep-alive", "20")},
		{"reports", 0, 8000, otel("reports"), gunicorn("orders:app", "reports", "-k", "gthread", "--threads", "1", "--backlog", "3")},
		{"api", 0, 3000, nodeEnv("api"), []string{node, filepath.Join(l.dir, "api.js")}},
		{"nginx", 0, 80, debian, []string{p.nginx(), "-p", l.dir, "-c", filepath.Join(l.dir, "nginx.conf")}},
	} {
		if err := l.launch(each.name, l.hosts[each.name], each.uid, each.env, each.argv...); err != nil {
			return err
		}
		if each.name == "api" || each.name == "db" { // nginx and orders look up their peers' names when they start
			if err := l.await(each.name, func() error { return l.listening(l.hosts[each.name], each.port) }); err != nil {
				return err
			}
		}
	}
	for name, port := range map[string]int{"cache": 6379, "stock": 3000, "price": 50051, "orders": 8000, "reports": 8000, "nginx": 80} {
		if err := l.await(name, func() error { return l.listening(l.hosts[name], port) }); err != nil {
			return err
		}
	}
	return nil
}

// nobody is the user that PostgreSQL runs as: it refuses to run as root.
const nobody = 65534

func (l *lab) initPostgres(p paths) error {
	data := filepath.Join(l.dir, "db")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := os.Chown(data, nobody, nobody); err != nil {
		return err
	}
	cmd := exec.Command(p.postgres("initdb"), "-D", data, "-U", "shop", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8") //nolint:gosec // the lab's own command
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+p.libraries())
	cmd.Dir = l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	file, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString("host all all all trust\n")
	return errors.Join(err, file.Close())
}

// writeSources writes the services' code and the hosts' /etc.
func (l *lab) writeSources() error {
	entries, err := sources.ReadDir("programs")
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := sources.ReadFile("programs/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.dir, e.Name()), text, 0o600); err != nil {
			return err
		}
	}
	resolv := fmt.Sprintf("nameserver %s\nsearch %s\noptions ndots:5\n", l.hosts["dns"].ip, domain)
	return errors.Join(
		os.WriteFile(filepath.Join(l.dir, "resolv.conf"), []byte(resolv), 0o644),                           //nolint:gosec // PostgreSQL reads it as another user
		os.WriteFile(filepath.Join(l.dir, "hosts"), []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644)) //nolint:gosec // the same
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// lab is everything that runs.
type lab struct {
	o        options
	dir      string
	hosts    map[string]*host
	programs map[string]*program
	faults   *faults
	dns      *resolver
	conn     driver.Conn
	// faultFrom and faultUntil bound the fault of a case.
	faultFrom, faultUntil time.Time
	// columns are those of trace_network that only newer versions have.
	columns map[string]string
}

// inside runs the lab in its own namespaces.
func inside(ctx context.Context, o options) (err error) {
	if err := settleIn(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "netlab-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // PostgreSQL runs as another user
		return err
	}
	if o.keep != "" {
		if err := os.MkdirAll(o.keep, 0o755); err != nil { //nolint:gosec // logs of a lab
			return err
		}
	}
	l := &lab{o: o, dir: dir, hosts: map[string]*host{}, programs: map[string]*program{}, faults: &faults{}, columns: map[string]string{}}
	defer l.stop()
	begun := time.Now()
	if err := l.start(); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "netlab: ready after %s\n", time.Since(begun).Round(100*time.Millisecond))
	return l.runCases(ctx)
}

func (l *lab) start() error {
	if err := namespaces.Feed("link set lo up\n", "ip", "-batch", "-"); err != nil {
		return err
	}
	for name, number := range hostNumbers {
		h, err := newHost(name, number)
		if err != nil {
			return fmt.Errorf("create host %s: %w", name, err)
		}
		l.hosts[name] = h
	}
	var err error
	if l.faults.hop, err = newHop(); err != nil {
		return err
	}
	if err := l.faults.set(); err != nil {
		return err
	}
	if l.dns, err = startResolver(l.hosts["dns"], slices.Collect(maps.Values(l.hosts))); err != nil {
		return err
	}
	if err := l.writeSources(); err != nil {
		return err
	}
	if err := l.startMetaFlow(); err != nil {
		return err
	}
	return l.startServices()
}

// startMetaFlow starts a server and an agent on the node, with their usual
// ports, because the node's network has nothing else.
func (l *lab) startMetaFlow() error {
	bin, err := filepath.Abs(l.o.bin)
	if err != nil {
		return err
	}
	ready := filepath.Join(l.dir, "ready.json")
	if err := l.launch("metaflow-server", nil, 0, []string{"METAFLOW_LOG_LEVEL=warn"}, filepath.Join(bin, "metaflow-server"), "standalone", "--data-dir", filepath.Join(l.dir, "data"), "--ready-file", ready); err != nil {
		return err
	}
	if err := l.await("metaflow-server", func() error { _, err := os.Stat(ready); return err }); err != nil {
		return err
	}
	if l.conn, err = clickhouse.Open(&clickhouse.Options{Addr: []string{"127.0.0.1:9000"}, ReadTimeout: 5 * time.Minute}); err != nil {
		return err
	}
	file := filepath.Join(l.dir, "agent.yaml")
	text := fmt.Sprintf("inputs:\n  integration: {enabled: true}\n  flow: {enabled: true, dump_interval: %s, report_interval: %s}\n", l.o.dump, l.o.report)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	ctl := exec.Command(filepath.Join(bin, "metaflow-ctl"), "agent-group-config", "update", "default", "-f", file, "-i", "127.0.0.1", "--api-port", "20417") //nolint:gosec // a program of this repository
	if out, err := ctl.CombinedOutput(); err != nil {
		return fmt.Errorf("configure the agent: %w: %s", err, out)
	}
	if err := l.launch("metaflow-agent", nil, 0, []string{"METAFLOW_OTLP_INSECURE=true"}, filepath.Join(bin, "metaflow-agent"), "run", "--server", "127.0.0.1:20035",
		"--spool-dir", filepath.Join(l.dir, "spool"), "--http-listen", "127.0.0.1:20418"); err != nil {
		return err
	}
	return l.await("metaflow-agent", func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:38086")
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// await waits until check returns nil while a program runs.
func (l *lab) await(name string, check func() error) error {
	p := l.programs[name]
	if err := wait.Poll(wait.Patience, p.done, check); err != nil {
		return fmt.Errorf("start %s: %w; its last output:\n%s", name, err, p.log.tail())
	}
	return nil
}

// stop ends the programs in order; what remains ends with this process.
func (l *lab) stop() {
	if l.conn != nil {
		_ = l.conn.Close()
	}
	for _, name := range []string{"metaflow-agent", "metaflow-server"} {
		if p := l.programs[name]; p != nil {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-p.done:
			case <-time.After(20 * time.Second):
			}
		}
	}
}

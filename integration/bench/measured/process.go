// Package measured holds what the benchmarks of whole programs share. It starts
// the programs under measurement and the engines and helpers around them, sends
// load, reads the CPU time and memory that the operating system accounts to a
// process, and prints the report.
package measured

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program under measurement.
type Process struct {
	Cmd    *exec.Cmd
	Output bytes.Buffer  // complete once Done is closed
	Done   chan struct{} // closed when the program has ended
}

// Start runs a program; it ends with this process.
func Start(verbose bool, env []string, name string, args ...string) (*Process, error) {
	p := &Process{Cmd: exec.Command(name, args...), Done: make(chan struct{})} //nolint:gosec // the operator names the programs
	p.Cmd.Env = append(os.Environ(), env...)
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.Cmd.Stdout, p.Cmd.Stderr = &p.Output, &p.Output
	if verbose {
		p.Cmd.Stdout, p.Cmd.Stderr = os.Stderr, os.Stderr
	}
	if err := p.Cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.Done)
		_ = p.Cmd.Wait()
	}()
	return p, nil
}

// Stop stops the program and waits for it.
func (p *Process) Stop() {
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.Done:
	case <-time.After(30 * time.Second):
		_ = p.Cmd.Process.Kill()
		<-p.Done
	}
}

// WaitListening returns when a program listens on addr. It fails if the process
// ends first or takes longer than a minute.
func (p *Process) WaitListening(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	for {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.Done:
			return fmt.Errorf("%s ended: %s", p.Cmd.Path, p.Output.String())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Usage is what the operating system accounts to a process.
type Usage struct {
	CPU  time.Duration
	Peak int64 // peak resident bytes
}

// Usage returns the usage of the program, which must be running.
func (p *Process) Usage() (Usage, error) { return UsageOf(p.Cmd.Process.Pid) }

// UsageOf reads /proc (proc(5): utime and stime are fields 14 and 15 of stat,
// in ticks of 1/100 s).
func UsageOf(pid int) (Usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, err
	}
	// The command's name, field 2, may contain spaces; it ends with the last
	// ')'.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	status, err3 := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err := errors.Join(err1, err2, err3); err != nil {
		return Usage{}, err
	}
	u := Usage{CPU: time.Duration(user+system) * 10 * time.Millisecond}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(kb)[0], 10, 64)
			u.Peak = n << 10
		}
	}
	return u, nil
}

// FreeAddr returns a loopback address with a free port.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // returns at once
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

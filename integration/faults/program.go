package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// program is a program that faults kill and stop. Where it ends by itself, it is
// started again, as systemd or Kubernetes does.
//
// Its methods are safe for concurrent use, but only one fault at a time may have
// a program.
type program struct {
	name    string
	command func() *exec.Cmd // a new one for each start
	log     io.Writer
	event   func(format string, args ...any)

	mu      sync.Mutex
	cmd     *exec.Cmd
	done    chan struct{} // closed when cmd has ended
	wanted  bool          // it should run
	endings int           // how often it ended by itself
}

// start starts the program, unless it runs.
func (p *program) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = true
	return p.launch()
}

// launch needs p.mu.
func (p *program) launch() error {
	if p.cmd != nil {
		return nil
	}
	cmd := p.command()
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cmd = nil
		close(done)
		if !p.wanted {
			return
		}
		p.endings++
		p.event("%s ended by itself: %s", p.name, cmd.ProcessState)
		time.AfterFunc(time.Second, p.again)
	}()
	return nil
}

// again starts the program after it has ended by itself.
func (p *program) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.wanted {
		return
	}
	if err := p.launch(); err != nil {
		p.event("%v", err)
	}
}

// kill ends the program like kill -9; it stays down until start.
func (p *program) kill() { p.end(syscall.SIGKILL, 0) }

// terminate sends SIGTERM, and kills the program if it takes too long; it stays
// down until start. It reports whether the program ended in time.
func (p *program) terminate(within time.Duration) bool { return p.end(syscall.SIGTERM, within) }

func (p *program) end(sig syscall.Signal, within time.Duration) bool {
	p.mu.Lock()
	p.wanted = false
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return true
	}
	_ = cmd.Process.Signal(sig)
	if sig != syscall.SIGKILL {
		select {
		case <-done:
			return true
		case <-time.After(within):
			p.event("%s did not end within %s after %s", p.name, within, sig)
			_ = cmd.Process.Kill()
		}
	}
	<-done
	return sig == syscall.SIGKILL
}

// pause is SIGSTOP, and resume is SIGCONT.
func (p *program) pause()  { p.signal(syscall.SIGSTOP) }
func (p *program) resume() { p.signal(syscall.SIGCONT) }

func (p *program) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(sig)
	}
}

// endedByItself is how often the program ended although no fault ended it.
func (p *program) endedByItself() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.endings
}

// environment is what programs get: ours without what concerns only ClickHouse.
func environment(more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return len(v) > 8 && (v[:8] == "FAKETIME" || v[:8] == "LD_PRELO")
	})
	return append(env, more...)
}

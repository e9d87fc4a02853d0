package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Missing says what there is not for a lab, empty when everything is there.
func Missing() string {
	if os.Geteuid() != 0 {
		return "network namespaces take root"
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Sprintf("the program %s is not installed (Debian has it in iproute2 and nftables)", program)
		}
	}
	probe := exec.Command("true")
	isolate(probe)
	if err := probe.Run(); err != nil {
		return fmt.Sprintf("the system makes no network namespaces: %v", err)
	}
	return ""
}

// isolate gives a program a network namespace of its own, and has it end with this process.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
}

// enter runs f in the network namespace of a process. Programs that f starts are inside too.
func enter(pid int, f func() error) (err error) {
	other, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer other.Close()
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace of process %d: %w", pid, err)
	}
	// The thread goes back rather than end: it may be the one that started the services, which
	// end with it.
	defer func() {
		back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread() // else nobody else may have it
		}
		err = errors.Join(err, back)
	}()
	return f()
}

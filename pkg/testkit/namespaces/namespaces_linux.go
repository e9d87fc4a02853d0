package namespaces

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Missing returns what this machine lacks, or "".
func Missing() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Sprintf("the program %s is not installed (Debian packages iproute2 and nftables)", program)
		}
	}
	probe := exec.Command("true")
	Isolate(probe)
	if err := probe.Run(); err != nil {
		return fmt.Sprintf("the system cannot create network namespaces: %v", err)
	}
	return ""
}

// Isolate starts a program in its own network namespace, and terminates it with
// this process.
func Isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
}

// Enter runs f in the network namespace of a process. Programs that f starts
// are inside too.
func Enter(pid int, f func() error) (err error) {
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
	// Restore the thread instead of ending it: it may be the one that started
	// other programs, which end with it.
	defer func() {
		back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread() // otherwise no other goroutine could use the thread
		}
		err = errors.Join(err, back)
	}()
	return f()
}

package chengine

import "syscall"

// childAttributes puts the child into a process group of its own, out of reach
// of Ctrl-C at our terminal, and has the kernel kill it when we end: waiting for
// the end of its input would let it hold the data directory for a while.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

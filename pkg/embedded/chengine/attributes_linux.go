package chengine

import "syscall"

// childAttributes puts the child into its own process group, so Ctrl-C at the terminal
// does not reach it, and makes the kernel kill it when this process ends: if it waited
// for the end of its input, it would hold the data directory for a while.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

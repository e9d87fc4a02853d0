package process

import "syscall"

// attributes detaches a program from Ctrl-C at the terminal, because the demo
// stops it in order, and makes the kernel terminate it if the demo is killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

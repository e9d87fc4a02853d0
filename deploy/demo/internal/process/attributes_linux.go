package process

import "syscall"

// attributes puts a program out of reach of Ctrl-C at our terminal, for we
// stop it when its time has come, and has the kernel stop it when we are killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

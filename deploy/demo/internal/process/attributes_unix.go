//go:build unix && !linux

package process

import "syscall"

// attributes detaches a program from Ctrl-C at the terminal, because the demo
// stops it in order.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

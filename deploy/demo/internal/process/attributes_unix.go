//go:build unix && !linux

package process

import "syscall"

// attributes puts a program out of reach of Ctrl-C at our terminal, for we
// stop it when its time has come.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

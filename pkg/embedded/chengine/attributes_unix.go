//go:build unix && !linux

package chengine

import "syscall"

// childAttributes puts the child into a process group of its own, out of reach
// of Ctrl-C at our terminal. The end of its input ends it after we are gone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

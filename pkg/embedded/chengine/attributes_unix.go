//go:build unix && !linux

package chengine

import "syscall"

// childAttributes puts the child into its own process group, so Ctrl-C at the terminal
// does not reach it. The child ends when its standard input closes after this process has
// ended.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

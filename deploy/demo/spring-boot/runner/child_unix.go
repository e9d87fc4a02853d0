//go:build unix && !linux

package main

import "syscall"

// childAttributes puts a child out of reach of Ctrl-C at our terminal, for we
// stop it when its time has come.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

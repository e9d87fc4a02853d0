//go:build !linux

package apachekafka

import "syscall"

// attributes are the usual ones: only Linux lets a process die with its parent.
func attributes() *syscall.SysProcAttr { return nil }

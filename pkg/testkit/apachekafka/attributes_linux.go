package apachekafka

import "syscall"

// attributes make the broker die with the test program.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// Package cputime measures CPU time in benchmarks.
package cputime

import (
	"syscall"
	"testing"
	"time"
)

// Used returns the CPU time of this process, which other work on the machine affects less than the clock.
func Used(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A process without access to the others reports it, unless only few are
// inaccessible.
func TestInaccessibleProcesses(t *testing.T) {
	withoutPrivileges(t)
	proc := fakeProc{t, t.TempDir()}
	for pid := 2; pid < 32; pid++ {
		proc.process(pid, "java", fmt.Sprintf("socket:[%d]", 100+pid))
	}
	p := newProcesses(proc.dir)
	for closed, want := range []bool{false, false, false, true} {
		fd := filepath.Join(proc.dir, strconv.Itoa(10+closed), "fd")
		if err := os.Chmod(fd, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(fd, 0o700) })
		if closed == 0 {
			continue
		}
		p.scan()
		if got := p.refused.Load(); got != want {
			t.Errorf("%d of 30 processes are inaccessible: refused is %t, want %t", closed+1, got, want)
		}
	}
	if p.name(109) != "java" || p.name(110) != "" {
		t.Error("a readable process is unknown, or an inaccessible one is known")
	}
}

// withoutPrivileges makes file modes apply to root too, on the test's thread.
func withoutPrivileges(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	runtime.LockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		t.Fatal(err)
	}
	less := had
	less[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&head, &less[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&head, &had[0]); err == nil {
			runtime.UnlockOSThread()
		}
	})
}

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func scan(t *testing.T, s *Scanner) map[uint64]Namespace {
	t.Helper()
	found, _, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	all := map[uint64]Namespace{}
	for _, ns := range found {
		all[ns.Inode] = ns
	}
	return all
}

func current(t *testing.T) uint64 {
	t.Helper()
	inode, err := inodeOf("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

// needRoot skips the test where network namespaces cannot be created.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to create network namespaces")
	}
	cmd := exec.Command("unshare", "--net", "true")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("cannot create network namespaces here: %v %s", err, out)
	}
}

func TestOwnNamespace(t *testing.T) {
	all := scan(t, NewScanner(Options{}))
	own, ok := all[current(t)]
	if !ok || !own.Own || len(own.PIDs) == 0 {
		t.Fatalf("own namespace is %+v", own)
	}
	ran := false
	if err := Do(own, func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("Do = %v, ran %t", err, ran)
	}
}

func TestNamespaceOfProcess(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("unshare", "--net", "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(in, "ready"); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil { // cat runs in the new namespace
		t.Fatal(err)
	}
	inode, err := inodeOf(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	s := NewScanner(Options{})
	ns, ok := scan(t, s)[inode]
	if !ok || ns.Own || len(ns.PIDs) != 1 || ns.PIDs[0] != cmd.Process.Pid {
		t.Fatalf("namespace is %+v", ns)
	}
	outside := current(t)
	var inside uint64
	if err := Do(ns, func() error { inside = current(t); return nil }); err != nil || inside != inode {
		t.Errorf("Do = %v, was in %d, want %d", err, inside, inode)
	}
	for range 100 { // no thread that was inside is reused
		done := make(chan uint64)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			inode, _ := inodeOf("/proc/thread-self/ns/net")
			done <- inode
		}()
		if got := <-done; got != outside {
			t.Fatalf("a goroutine runs in namespace %d", got)
		}
	}

	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, ok := scan(t, s)[inode]; ok {
		t.Error("namespace still listed after its process ended")
	}
	if err := Do(ns, func() error { return nil }); !errors.Is(err, ErrGone) {
		t.Errorf("Do = %v, want ErrGone", err)
	}
}

// TestMainThreadStaysOutside: Go never ends the process's first thread, so that
// thread would keep alive any namespace that it entered.
func TestMainThreadStaysOutside(t *testing.T) {
	needRoot(t)
	before, err := inodeOf("/proc/self/ns/net") // the first thread's
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("unshare", "--net="+path, "true").CombinedOutput(); err != nil {
		t.Skipf("cannot mount network namespaces here: %v %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	inode, err := inodeOf(path)
	if err != nil {
		t.Fatal(err)
	}
	ns := Namespace{Inode: inode, path: path}
	var inside sync.WaitGroup
	for range 2000 { // any free thread runs a goroutine, sooner or later the first one
		inside.Go(func() {
			err := Do(ns, func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("entered by the first thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		if inodeNow, err := inodeOf("/proc/self/ns/net"); err != nil || inodeNow != before {
			t.Fatalf("the process is in namespace %d, %v", inodeNow, err)
		}
	}
	inside.Wait()
	if after, err := inodeOf("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("the process is in namespace %d, %v", after, err)
	}
}

// TestThreadsEnd: the thread of Do ends whether the namespace could be entered
// or not.
func TestThreadsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no-namespace")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inode, err := inodeOf(path)
	if err != nil {
		t.Fatal(err)
	}
	threads := func() int {
		all, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := threads()
	for range 500 {
		if err := Do(Namespace{Inode: inode, path: path}, func() error { return nil }); err == nil {
			t.Fatal("entered a regular file")
		}
	}
	if after := threads(); after > before+50 { // a few may still be ending
		t.Errorf("%d threads, %d before", after, before)
	}
}

func TestNamespaceByName(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "cni-1")
	for _, name := range []string{path, filepath.Join(dir, "no-mount")} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("unshare", "--net="+path, "true").CombinedOutput(); err != nil {
		t.Skipf("cannot mount network namespaces here: %v %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	inode, err := inodeOf(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewScanner(Options{Dirs: []string{dir, filepath.Join(dir, "absent")}})
	ns, ok := scan(t, s)[inode]
	if !ok || ns.Name != "cni-1" || len(ns.PIDs) != 0 {
		t.Fatalf("namespace is %+v", ns)
	}
	var inside uint64
	if err := Do(ns, func() error { inside = current(t); return nil }); err != nil || inside != inode {
		t.Errorf("Do = %v, was in %d, want %d", err, inside, inode)
	}
	if err := unix.Unmount(path, 0); err != nil {
		t.Fatal(err)
	}
	// Another namespace may have reused the inode by now.
	if again, ok := scan(t, s)[inode]; ok && again.Name == ns.Name {
		t.Error("namespace still listed after it was unmounted")
	}
	if err := Do(ns, func() error { return nil }); !errors.Is(err, ErrGone) {
		t.Errorf("Do = %v, want ErrGone", err)
	}
}

// TestWithoutPrivileges runs this test binary again as another user.
func TestWithoutPrivileges(t *testing.T) {
	if os.Getenv("NETNS_TEST_UNPRIVILEGED") != "" {
		found, missing, err := NewScanner(Options{}).Scan()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range missing {
			fmt.Printf("%s: %s\n", m.Privilege, m.Hint())
		}
		ns := Namespace{Inode: 1, path: "/proc/1/ns/net"}
		fmt.Println(Do(ns, func() error { return nil }))
		for _, own := range found {
			if own.Own {
				own.Own = false // enter it like any other
				fmt.Println(Do(own, func() error { return nil }))
			}
		}
		return
	}
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The other user can run a copy in a directory that it may enter.
	dir, err := os.MkdirTemp("/tmp", "netns") //nolint:usetesting // the test's own directory is of mode 0700
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "netns.test")
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "-test.run=TestWithoutPrivileges")
	cmd.Env = append(os.Environ(), "NETNS_TEST_UNPRIVILEGED=1")
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs setpriv")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		"CAP_SYS_PTRACE: Flow data lacks the network namespaces of other users' processes",
		"CAP_SYS_PTRACE is missing: permission denied",
		"CAP_SYS_ADMIN is missing: operation not permitted",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	s := NewScanner(Options{})
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		found, _, err := s.Scan()
		if err != nil {
			b.Fatal(err)
		}
		n = len(found)
	}
	b.ReportMetric(float64(n), "namespaces")
}

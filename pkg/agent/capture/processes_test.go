package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// fakeProc is a directory laid out like /proc.
type fakeProc struct {
	t   *testing.T
	dir string
}

func (f fakeProc) process(pid int, comm string, links ...string) {
	f.t.Helper()
	dir := filepath.Join(f.dir, strconv.Itoa(pid))
	if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	for i, link := range links {
		if err := os.Symlink(link, filepath.Join(dir, "fd", strconv.Itoa(i))); err != nil {
			f.t.Fatal(err)
		}
	}
}

func TestProcesses(t *testing.T) {
	proc := fakeProc{t, t.TempDir()}
	proc.process(1, "systemd", "socket:[10]", "socket:[11]", "/dev/null")
	proc.process(20, "nginx", "pipe:[13]", "socket:[10]", "socket:[12]", "anon_inode:[eventpoll]", "socket:[x]", "socket:[99999999999]")
	proc.process(3, "a\x01b\xff\n", "socket:[14]")
	if err := os.WriteFile(filepath.Join(proc.dir, "5"), nil, 0o600); err != nil { // not a process
		t.Fatal(err)
	}
	p := newProcesses(proc.dir)
	check := func(want map[uint32]string) {
		t.Helper()
		for inode, name := range want {
			if got := p.name(inode); got != name {
				t.Errorf("socket %d belongs to %q, want %q", inode, got, name)
			}
		}
	}
	p.scan()
	check(map[uint32]string{10: "nginx", 11: "systemd", 12: "nginx", 13: "", 14: "a?b??", 0: "", 99: ""})

	if err := os.RemoveAll(filepath.Join(proc.dir, "20")); err != nil {
		t.Fatal(err)
	}
	proc.process(30, "sshd", "socket:[15]")
	p.scan()
	check(map[uint32]string{10: "systemd", 12: "nginx", 15: "sshd"}) // rows of ended processes may still come
	p.scan()
	check(map[uint32]string{12: "", 15: "sshd"})
}

// A connection that no dump saw has the name of its namespace's processes, if
// it can be no other.
func TestSoleNames(t *testing.T) {
	proc := fakeProc{t, t.TempDir()}
	namespace := map[string]uint64{}
	for _, name := range []string{"one", "workers", "two", "shell"} {
		file := filepath.Join(proc.dir, name)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		namespace[name] = info.Sys().(*syscall.Stat_t).Ino
	}
	process := func(pid int, in, comm string, links ...string) {
		proc.process(pid, comm, links...)
		dir := filepath.Join(proc.dir, strconv.Itoa(pid), "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(proc.dir, in), filepath.Join(dir, "net")); err != nil {
			t.Fatal(err)
		}
	}
	process(10, "one", "java", "socket:[1]")
	process(20, "workers", "gunicorn", "socket:[2]")
	process(21, "workers", "gunicorn", "socket:[2]")
	process(22, "workers", "pause")
	process(30, "two", "nginx", "socket:[3]")
	process(31, "two", "curl")
	process(40, "shell", "sh", "pipe:[4]") // it may start anything
	p := newProcesses(proc.dir)
	check := func(want map[string]string) {
		t.Helper()
		for in, name := range want {
			if got := p.soleName(namespace[in]); got != name {
				t.Errorf("%s: %q, want %q", in, got, name)
			}
		}
	}
	p.scan()
	check(map[string]string{"one": "", "workers": "", "two": "", "shell": ""})
	p.scan()
	check(map[string]string{"one": "java", "workers": "gunicorn", "two": "", "shell": ""})
	process(11, "one", "jstack")
	p.scan()
	check(map[string]string{"one": "", "workers": "gunicorn"})
}

// The cost of a scan grows with the descriptors.
func BenchmarkProcesses(b *testing.B) {
	var files []*os.File
	for range 1000 {
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, r, w)
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	p := newProcesses("")
	own := fmt.Sprint(os.Getpid())
	for b.Loop() {
		p.addSockets(map[uint32]string{}, own)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(files)), "ns/descriptor")
}

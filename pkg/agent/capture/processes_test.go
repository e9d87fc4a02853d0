package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

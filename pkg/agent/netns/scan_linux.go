package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
)

const (
	maxPIDs = 4
	// initialPIDNamespace is PROC_PID_INIT_INO of linux/proc_ns.h, the inode of
	// the PID namespace that the machine booted with.
	initialPIDNamespace = 0xEFFFFFFC
)

// Scanner lists network namespaces. It belongs to one goroutine at a time. Use
// NewScanner.
type Scanner struct {
	proc   string
	dirs   []string
	owners map[uint64]owned // from the last scan
	link   [64]byte
}

// owned is the owner of a namespace and the processes that it was derived from.
type owned struct {
	pids  []int
	owner cgroup.Owner
}

// NewScanner returns a Scanner.
func NewScanner(opts Options) *Scanner {
	s := &Scanner{proc: opts.ProcRoot, dirs: opts.Dirs}
	if s.proc == "" {
		s.proc = "/proc"
	}
	if s.dirs == nil {
		s.dirs = []string{"/run/netns", "/run/docker/netns"}
	}
	return s
}

// Scan lists the namespaces that exist now, sorted by inode. missing names the
// privileges without which the list is incomplete. err is set only when there
// is no list.
func (s *Scanner) Scan() (found []Namespace, missing []*MissingError, err error) {
	own, err := inodeOf("/proc/thread-self/ns/net")
	if err != nil {
		return nil, nil, fmt.Errorf("find own network namespace: %w", err)
	}
	all := map[uint64]*Namespace{own: {Inode: own, Own: true, path: "/proc/thread-self/ns/net"}}
	visited, denied, err := s.scanProcesses(all)
	if err != nil {
		return nil, nil, err
	}
	// A few processes may be inaccessible even with the privilege; most are
	// not.
	if denied > 0 && (!capable(unix.CAP_SYS_PTRACE) || denied > visited) {
		missing = append(missing, &MissingError{Privilege: SysPtrace, Err: unix.EACCES})
	}
	if pid, err := inodeOf(filepath.Join(s.proc, "1/ns/pid")); err == nil && pid != initialPIDNamespace {
		missing = append(missing, &MissingError{Privilege: HostPID})
	}
	s.scanMounts(all)

	owners := make(map[uint64]owned, len(all))
	for _, ns := range all {
		was, known := s.owners[ns.Inode]
		if !known || !slices.Equal(was.pids, ns.PIDs) {
			was = owned{pids: ns.PIDs, owner: s.ownerOf(ns.PIDs)}
		}
		ns.Owner = was.owner
		owners[ns.Inode] = was
		found = append(found, *ns)
	}
	s.owners = owners
	slices.SortFunc(found, func(a, b Namespace) int {
		if a.Inode < b.Inode {
			return -1
		}
		return 1
	})
	return found, missing, nil
}

// scanProcesses adds the namespaces of all processes. It returns the number of
// processes read, and the number to which access was denied.
func (s *Scanner) scanProcesses(all map[uint64]*Namespace) (visited, denied int, err error) {
	dir, err := os.Open(s.proc)
	if err != nil {
		return 0, 0, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	fd := int(dir.Fd())
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			inode, err := s.namespaceOf(fd, name)
			switch {
			case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
				denied++
				continue
			case err != nil:
				continue // the process ended
			}
			visited++
			ns := all[inode]
			if ns == nil {
				ns = &Namespace{Inode: inode}
				all[inode] = ns
			}
			if ns.path == "" {
				ns.path = filepath.Join(s.proc, name, "ns/net")
			}
			if len(ns.PIDs) < maxPIDs {
				ns.PIDs = append(ns.PIDs, pid)
			}
		}
		if errors.Is(err, io.EOF) {
			return visited, denied, nil
		}
		if err != nil {
			return visited, denied, fmt.Errorf("list processes: %w", err)
		}
	}
}

// namespaceOf parses the link to a process's network namespace,
// "net:[4026531840]".
func (s *Scanner) namespaceOf(proc int, pid string) (uint64, error) {
	n, err := unix.Readlinkat(proc, pid+"/ns/net", s.link[:])
	if err != nil {
		return 0, err
	}
	digits, ok := bytes.CutPrefix(s.link[:n], []byte("net:["))
	if !ok {
		return 0, unix.EINVAL
	}
	return strconv.ParseUint(string(bytes.TrimSuffix(digits, []byte("]"))), 10, 64)
}

// scanMounts adds the namespaces mounted under names, and sets the names of
// those that processes are in. A mount outlives the processes, so it is the
// preferred way in.
func (s *Scanner) scanMounts(all map[uint64]*Namespace) {
	for _, dir := range s.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // usually the directory does not exist
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			var fs unix.Statfs_t
			if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
				continue // being mounted or unmounted
			}
			inode, err := inodeOf(path)
			if err != nil {
				continue
			}
			ns := all[inode]
			if ns == nil {
				ns = &Namespace{Inode: inode}
				all[inode] = ns
			}
			if ns.Name == "" {
				ns.Name = e.Name()
				if !ns.Own {
					ns.path = path
				}
			}
		}
	}
}

// ownerOf derives the owner from the control groups of several processes,
// because a process of the host, for example a runtime at work, may be in a
// pod's network namespace for a moment. The most specific answer counts.
func (s *Scanner) ownerOf(pids []int) cgroup.Owner {
	var text strings.Builder
	for _, pid := range pids {
		b, err := os.ReadFile(filepath.Join(s.proc, strconv.Itoa(pid), "cgroup"))
		if err != nil {
			continue
		}
		text.Write(b)
		text.WriteByte('\n')
	}
	return cgroup.Parse(text.String())
}

// capable reports whether the process has a capability, and assumes so if the
// kernel does not answer.
func capable(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// Do runs f inside the namespace, on a thread that ends with it, and waits.
// Sockets that f opens stay inside; f must not start goroutines that rely on
// being inside. Do returns ErrGone when the namespace no longer exists, and a
// *MissingError when the process may not enter it.
func Do(ns Namespace, f func() error) error {
	if ns.Own {
		return f()
	}
	done := make(chan error, 1)
	go runInside(ns, f, done)
	return <-done
}

// runInside is the body of a goroutine inside a namespace. It never unlocks its
// thread, so that the thread ends with the goroutine: reused, it would run
// other goroutines inside the namespace.
//
// The process's first thread cannot end. It would stay inside, keep the
// namespace alive, and make /proc/PID/ns show it as the whole process's. So
// runInside does not use that thread, but holds it until a goroutine on another
// thread is done.
func runInside(ns Namespace, f func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		other := make(chan error, 1)
		go runInside(ns, f, other)
		done <- <-other
		return
	}
	done <- enter(ns, f)
}

func enter(ns Namespace, f func() error) error {
	fd, err := unix.Open(ns.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return ErrGone
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &MissingError{Privilege: SysPtrace, Err: err}
	case err != nil:
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if st.Ino != ns.Inode {
		return ErrGone // the PID or the name was reused
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			return &MissingError{Privilege: SysAdmin, Err: err}
		}
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return f()
}

package capture

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

const (
	// scanShare is the least ratio between the pause after a scan of all
	// descriptors and the scan itself. It limits scans to one percent of a
	// core, however many processes there are. A scan takes about 4 us a
	// descriptor.
	scanShare = 100
	// refusedShare is the divisor for the share of processes that may be
	// inaccessible before it counts as an exception.
	refusedShare = 10
	// maxSockets bounds the sockets remembered from one scan, at about 30 bytes
	// each.
	maxSockets = 200_000
)

// processes maps socket inodes, which the kernel reports for sockets and shows
// in /proc/PID/fd, to the names of the processes that hold them. An unknown
// inode requests a scan, which the goroutine of run makes.
type processes struct {
	proc string
	due  chan struct{} // holds one request for a scan
	seen atomic.Pointer[sockets]
	// refused reports whether the last scan could not access too many
	// processes.
	refused atomic.Bool
}

// processesException is the exception while refused is set.
const processesException = "Flow data lacks the process names of other users' connections: reading /proc/PID/fd needs the capabilities CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE."

// sockets maps the inodes of sockets to process names. It is immutable.
type sockets struct {
	now    map[uint32]string
	before map[uint32]string // the previous scan's, for sockets that are closed

	sole, soleBefore map[uint64]sole // by network namespace
}

// sole is the name that all processes of a network namespace share.
type sole struct {
	name    string
	several bool // there is no such name
	sockets bool // one of the processes holds a socket
}

// holds reports whether the connections of the namespace can only be those of
// processes with the name.
func (s sole) holds() bool { return !s.several && s.sockets }

func newProcesses(proc string) *processes {
	if proc == "" {
		proc = "/proc"
	}
	p := &processes{proc: proc, due: make(chan struct{}, 1)}
	p.seen.Store(&sockets{})
	return p
}

// name returns the name of the process that holds a socket, or "" if it is
// unknown.
func (p *processes) name(inode uint32) string {
	s := p.seen.Load()
	if name, ok := s.now[inode]; ok {
		return name
	}
	return s.before[inode]
}

// soleName returns the name of all processes in a network namespace if they
// share one and hold sockets, as two scans in a row saw it, and "" otherwise.
// It names the connections that no dump saw.
func (p *processes) soleName(namespace uint64) string {
	s := p.seen.Load()
	if now := s.sole[namespace]; now.holds() && now == s.soleBefore[namespace] {
		return now.name
	}
	return ""
}

// requestScan requests a scan. It does not block.
func (p *processes) requestScan() {
	select {
	case p.due <- struct{}{}:
	default:
	}
}

// idle are the programs that only keep a pod or container alive. They make no
// connections, and run no others but the one they were started with.
var idle = map[string]bool{"pause": true, "tini": true, "dumb-init": true, "catatonit": true, "docker-init": true}

// requestScanFor requests a scan if the last two did not know the namespace.
func (p *processes) requestScanFor(namespace uint64) {
	s := p.seen.Load()
	_, now := s.sole[namespace]
	_, before := s.soleBefore[namespace]
	if !now || !before {
		p.requestScan()
	}
}

// run scans on request until ctx ends, at most about once an interval.
func (p *processes) run(ctx context.Context, interval func() time.Duration) {
	for {
		select {
		case <-p.due:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		p.scan()
		// Slightly less than the interval, so that the next dump finds the scan
		// due.
		if retry.Sleep(ctx, max(interval()*3/4, scanShare*time.Since(began))) != nil {
			return
		}
	}
}

// scan finds the sockets of all processes. Among several holders of a socket,
// the one with the lowest PID counts: the others were forked from it. PID 1
// comes last, because it creates sockets for others and keeps them.
func (p *processes) scan() {
	visited, refused := 0, 0
	last := p.seen.Load()
	found := make(map[uint32]string, len(last.now))
	inside := make(map[uint64]sole, len(last.sole))
	if dir, err := os.Open(p.proc); err == nil {
		defer dir.Close()
		for {
			names, err := dir.Readdirnames(512)
			for _, pid := range names {
				if pid[0] < '1' || pid[0] > '9' || pid == "1" {
					continue
				}
				visited++
				if p.add(found, inside, pid) {
					refused++
				}
			}
			if err != nil {
				break // usually the end of the directory
			}
		}
		p.add(found, inside, "1")
	}
	// A few processes may be inaccessible even with the privileges.
	p.refused.Store(refused > visited/refusedShare)
	p.seen.Store(&sockets{now: found, before: last.now, sole: inside, soleBefore: last.sole})
}

// add adds the sockets of a process, and the process to those inside its network
// namespace. It reports whether access was refused.
func (p *processes) add(found map[uint32]string, inside map[uint64]sole, pid string) (refused bool) {
	holds, refused := p.addSockets(found, pid)
	var st unix.Stat_t
	if unix.Stat(p.proc+"/"+pid+"/ns/net", &st) != nil {
		return refused // it ended, or is not accessible
	}
	all, known := inside[st.Ino]
	switch name := p.nameOf(pid); {
	case name == "" || idle[name]:
	case !known:
		inside[st.Ino] = sole{name: name, sockets: holds, several: refused}
	default:
		inside[st.Ino] = sole{name: all.name, sockets: all.sockets || holds, several: all.several || refused || name != all.name}
	}
	return refused
}

// addSockets adds the sockets of one process that no other process holds yet,
// and reports whether it holds any, and whether access was refused. Other errors
// mean that the process ended.
func (p *processes) addSockets(found map[uint32]string, pid string) (holds, refused bool) {
	dir, err := os.Open(p.proc + "/" + pid + "/fd")
	if err != nil {
		return false, errors.Is(err, fs.ErrPermission)
	}
	defer dir.Close()
	var name string
	var link [32]byte
	for len(found) < maxSockets {
		descriptors, err := dir.Readdirnames(512)
		for _, d := range descriptors {
			n, err := unix.Readlinkat(int(dir.Fd()), d, link[:])
			if err != nil {
				refused = refused || errors.Is(err, fs.ErrPermission)
				continue // closed meanwhile, or not accessible
			}
			inode, ok := socketInode(link[:n])
			if !ok {
				continue
			}
			holds = true
			if _, known := found[inode]; known {
				continue
			}
			if name == "" {
				if name = p.nameOf(pid); name == "" {
					return holds, false // the process ended
				}
			}
			found[inode] = name
		}
		if err != nil {
			break
		}
	}
	return holds, refused
}

// socketInode parses the link of a socket's descriptor, "socket:[4026531840]".
func socketInode(link []byte) (inode uint32, ok bool) {
	digits, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(bytes.TrimSuffix(digits, []byte("]"))), 10, 32)
	return uint32(n), err == nil && n != 0
}

// nameOf returns the name that the process gave itself, at most 15 bytes. It
// may hold any bytes; control characters and invalid UTF-8 are replaced.
func (p *processes) nameOf(pid string) string {
	text, err := os.ReadFile(p.proc + "/" + pid + "/comm")
	if err != nil {
		return ""
	}
	return strings.Map(printable, strings.ToValidUTF8(strings.TrimSuffix(string(text), "\n"), "?"))
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return '?'
	}
	return r
}

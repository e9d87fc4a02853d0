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
)

const (
	// scanShare is how many times as long as a look at all descriptors took passes before the next: it takes at
	// most one percent of a core, however many processes there are. One takes some 4 us a descriptor.
	scanShare = 100
	// refusedShare is the part of the processes that may be out of reach without a word.
	refusedShare = 10
	// maxSockets bounds what is remembered of one look, at some 30 bytes each.
	maxSockets = 200_000
)

// processes knows which process has a socket, by the inodes that the kernel tells of sockets and shows in
// /proc/PID/fd. Whoever sees a socket that is not known asks for a look, which one goroutine makes.
type processes struct {
	proc string
	due  chan struct{} // has room for one: there are sockets that are not known
	seen atomic.Pointer[sockets]
	// refused is whether the last look was not let into most of what it could not do without.
	refused atomic.Bool
}

// unnamed says what is missing where looks are refused.
const unnamed = "Connections of other users' processes are not named by their process: reading /proc/PID/fd needs the capabilities CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE."

// sockets are the names of processes by the inodes of their sockets. They are not changed any more.
type sockets struct {
	now    map[uint32]string
	before map[uint32]string // as of the look before, for sockets that are closed
}

func newProcesses(proc string) *processes {
	if proc == "" {
		proc = "/proc"
	}
	p := &processes{proc: proc, due: make(chan struct{}, 1)}
	p.seen.Store(&sockets{})
	return p
}

// name is that of the process that has a socket, empty when it is not known.
func (p *processes) name(inode uint32) string {
	s := p.seen.Load()
	if name, ok := s.now[inode]; ok {
		return name
	}
	return s.before[inode]
}

// ask has all processes looked at soon. It does not wait.
func (p *processes) ask() {
	select {
	case p.due <- struct{}{}:
	default:
	}
}

// run looks when it is asked, until ctx ends, about once in an interval at most.
func (p *processes) run(ctx context.Context, interval func() time.Duration) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-p.due:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		p.look()
		// A little less than the interval, so that the next dump finds the next look due.
		pause.Reset(max(interval()*3/4, scanShare*time.Since(began)))
	}
}

// look finds the sockets of all processes. Of one that several have, whoever has the lowest PID counts, which is the one
// that the others were forked from; but PID 1 makes sockets for others to use, and keeps them.
func (p *processes) look() {
	looked, refused := 0, 0
	found := make(map[uint32]string, len(p.seen.Load().now))
	if dir, err := os.Open(p.proc); err == nil {
		defer dir.Close()
		for {
			names, err := dir.Readdirnames(512)
			for _, pid := range names {
				if pid[0] < '1' || pid[0] > '9' || pid == "1" {
					continue
				}
				looked++
				if p.addSockets(found, pid) {
					refused++
				}
			}
			if err != nil {
				break // its end, mostly
			}
		}
		p.addSockets(found, "1")
	}
	// A few processes may be out of reach for everybody.
	p.refused.Store(refused > looked/refusedShare)
	p.seen.Store(&sockets{now: found, before: p.seen.Load().now})
}

// addSockets adds those of one process that are nobody's yet, and returns whether it was not let in. What else cannot
// be read has ended.
func (p *processes) addSockets(found map[uint32]string, pid string) (refused bool) {
	dir, err := os.Open(p.proc + "/" + pid + "/fd")
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
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
				continue // closed meanwhile, or not for this process to know
			}
			inode, ok := socketInode(link[:n])
			if !ok {
				continue
			}
			if _, known := found[inode]; known {
				continue
			}
			if name == "" {
				if name = p.nameOf(pid); name == "" {
					return false // it ended
				}
			}
			found[inode] = name
		}
		if err != nil {
			break
		}
	}
	return refused
}

// socketInode reads what a descriptor of a socket links to, "socket:[4026531840]".
func socketInode(link []byte) (inode uint32, ok bool) {
	digits, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(bytes.TrimSuffix(digits, []byte("]"))), 10, 32)
	return uint32(n), err == nil && n != 0
}

// nameOf is what a process calls itself, at most 15 bytes. It may be anything.
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

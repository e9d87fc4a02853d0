package spool

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Bounds of a segment's size, which is otherwise one 64th of the spool. Small
// segments free room earlier; large ones make fewer files.
const (
	leastSegment   = 64 << 10
	largestSegment = 64 << 20
	segmentsInFull = 64
)

func segmentSize(maxBytes int64) int64 {
	return min(max(maxBytes/segmentsInFull, leastSegment), largestSegment)
}

// segment is one file of entries. Its fields are guarded by Spool.mu.
type segment struct {
	number uint64
	path   string
	file   *os.File  // open for writing; nil afterwards
	first  time.Time // when the first entry was received

	// Bytes and entries written, and the part of them on stable storage.
	size, durableSize int64
	written, durable  uint32
	sealed            bool  // no entry will be added
	syncing           bool  // an Append syncs it without the lock
	failed            error // why entries after the durable ones were discarded

	// Of the durable entries, those from handed on have not been handed out,
	// those below low are done, and those between are done if they are in done.
	handed uint32
	low    uint32
	done   map[uint32]struct{}

	before uint32 // entries below it may have been handed out by an earlier process
	read   bool   // every readable entry was read
}

const segmentSuffix = ".spool"

func segmentPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
}

// segmentNumber parses the name of a segment's file. It returns false for other
// files.
func segmentNumber(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	number, err := strconv.ParseUint(hex, 16, 64)
	return number, err == nil
}

// createSegment creates an empty segment whose directory entry survives a
// crash.
func createSegment(dir *os.File, number uint64) (*segment, error) {
	path := segmentPath(dir.Name(), number)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	if err := dir.Sync(); err != nil {
		file.Close()
		_ = os.Remove(path) // the sync error matters more
		return nil, fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return &segment{number: number, path: path, file: file}, nil
}

// finished reports whether the file can be removed.
func (g *segment) finished() bool { return g.read && g.sealed && g.low == g.handed }

// finish marks an entry that was handed out as done.
func (g *segment) finish(index uint32) {
	if g.done == nil {
		g.done = make(map[uint32]struct{})
	}
	g.done[index] = struct{}{}
	g.advance()
}

func (g *segment) advance() {
	for g.low < g.handed {
		if _, ok := g.done[g.low]; !ok {
			return
		}
		delete(g.done, g.low)
		g.low++
	}
}

// pass marks the entries before index that were not handed out as done, because
// they never will be. It returns their number.
func (g *segment) pass(index uint32) (lost uint32) {
	for g.handed < index {
		i := g.handed
		g.handed++
		g.finish(i)
		lost++
	}
	return lost
}

// seal ends the segment with a footer. The footer may be missing: the segment
// is then scanned when it is opened.
func (g *segment) seal() {
	if g.sealed {
		return
	}
	g.sealed = true
	footer := header{flags: flagFooter, index: g.written, received: g.first.UnixNano()}.encode(g.number)
	if n, err := g.file.WriteAt(footer[:], g.size); err != nil && n > 0 {
		_ = g.file.Truncate(g.size) // otherwise the next start cuts it off
	}
}

// openSegment reads as little of an existing segment as possible: the footer,
// or everything if there is none. cut is the number of bytes cut off the end.
func openSegment(dir string, number uint64) (g *segment, cut int64, err error) {
	g = &segment{number: number, path: segmentPath(dir, number), sealed: true}
	file, err := os.OpenFile(g.path, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	g.size = info.Size()
	var b [headerSize]byte
	if g.size >= headerSize {
		if _, err := file.ReadAt(b[:], g.size-headerSize); err == nil {
			h, ok := decode(b[:], number)
			if ok && h.flags&flagFooter != 0 && int64(h.index) <= g.size/headerSize {
				g.first = h.receivedAt()
				g.written, g.durable, g.durableSize = h.index, h.index, g.size
				return g, 0, nil
			}
		}
	}
	end := g.scan(file)
	cut = g.size - end
	if cut > 0 {
		if err := file.Truncate(end); err != nil {
			return nil, 0, fmt.Errorf("cut %s: %w", g.path, err)
		}
	}
	g.size, g.durable, g.durableSize = end, g.written, end
	return g, cut, nil
}

// scan reads the entries of a segment without a footer and returns the end of
// the last intact one.
func (g *segment) scan(file io.ReaderAt) (end int64) {
	s := scanner{file: file, segment: g.number}
	for {
		h, _, err := s.next(g.size)
		if err != nil {
			return end
		}
		if g.written == 0 {
			g.first = h.receivedAt()
		}
		g.written, end = h.index+1, s.off
	}
}

package capture

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
)

// walkInterval is at least between two looks at all control groups, some 50 us each, when one is not known.
const walkInterval = 15 * time.Second

// groups knows control groups by their inodes, which is how the kernel names the one of a socket.
type groups struct {
	root string // empty when there are none of version 2

	mu     sync.Mutex
	walked time.Time
	owners map[uint64]cgroup.Owner
	before map[uint64]cgroup.Owner // as of the walk before, for sockets of groups that are gone
}

func newGroups(root string) *groups {
	if root == "" {
		for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
				root = dir
				break
			}
		}
	}
	return &groups{root: root}
}

// owner is whom a control group belongs to, nobody when it is not known.
func (g *groups) owner(inode uint64, now time.Time) cgroup.Owner {
	if g.root == "" {
		return cgroup.Owner{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if o, ok := g.owners[inode]; ok {
		return o
	}
	if o, ok := g.before[inode]; ok {
		return o
	}
	if g.walked.IsZero() || now.Sub(g.walked) >= walkInterval {
		g.walked = now
		g.walk()
	}
	return g.owners[inode]
}

func (g *groups) walk() {
	g.before = g.owners
	g.owners = make(map[uint64]cgroup.Owner, len(g.before))
	// What cannot be read was removed meanwhile, or is not for this process; the others still count.
	_ = filepath.WalkDir(g.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // see above
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			g.owners[stat.Ino] = cgroup.ParsePath(path[len(g.root):])
		}
		return nil
	})
}

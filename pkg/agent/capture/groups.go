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

// walkInterval is the least time between two walks over all control groups, at
// 50 us a group, which an unknown inode triggers.
const walkInterval = 15 * time.Second

// groups maps the inodes of control groups to their owners. The kernel
// identifies a socket's control group by inode.
type groups struct {
	root string // empty if version 2 is not mounted

	mu     sync.Mutex
	walked time.Time
	owners map[uint64]cgroup.Owner
	before map[uint64]cgroup.Owner // the previous walk's, for sockets of removed groups
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

// owner returns the owner of a control group, or the zero Owner if it is
// unknown.
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
	// Entries that cannot be read were removed meanwhile or are not accessible;
	// the walk goes on with the others.
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

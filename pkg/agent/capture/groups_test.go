package capture

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
)

func TestGroups(t *testing.T) {
	root := t.TempDir()
	id := strings.Repeat("0123456789abcdef", 4)
	inode := func(path string) uint64 {
		t.Helper()
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	container := inode("system.slice/docker-" + id + ".scope")
	g := newGroups(root)
	now := time.Unix(1, 0)
	want := cgroup.Owner{ContainerID: id, Runtime: "docker"}
	if got := g.owner(container, now); got != want {
		t.Errorf("container's group is %+v", got)
	}
	service := inode("system.slice/nginx.service")
	if got := g.owner(service, now.Add(time.Second)); got != (cgroup.Owner{}) {
		t.Errorf("groups were walked again at once: %+v", got)
	}
	if err := os.Remove(filepath.Join(root, "system.slice/docker-"+id+".scope")); err != nil {
		t.Fatal(err)
	}
	if got := g.owner(service, now.Add(walkInterval)); got.Unit != "nginx.service" {
		t.Errorf("service's group is %+v", got)
	}
	if got := g.owner(container, now.Add(walkInterval)); got != want {
		t.Errorf("removed group is %+v", got)
	}
}

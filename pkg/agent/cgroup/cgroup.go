// Package cgroup derives the owner of a process from the path of its control
// group: a pod, a container, or a systemd unit.
//
// Kubernetes, container runtimes, Docker, Podman and systemd each name control
// groups by their own rules, which also differ with the version of control
// groups and with the manager, the runtime or systemd. This package holds those
// rules; it reads no files.
package cgroup

import "strings"

// Owner is the owner of a control group. Fields that the path does not show are
// empty.
type Owner struct {
	// PodUID is the pod's UID, with dashes. For a static pod it is the hash of
	// its manifest, which the pod's mirror in the API carries as the annotation
	// kubernetes.io/config.hash.
	PodUID string
	// ContainerID has 64 hexadecimal digits. For a pod's sandbox it is the
	// sandbox's.
	ContainerID string
	// Runtime is containerd, cri-o, docker or podman, if the path shows it.
	Runtime string
	// Unit is the systemd unit, for example nginx.service. Users can choose
	// such names; invalid UTF-8 in them is replaced.
	Unit string
}

// Parse parses the text of /proc/PID/cgroup. Of the several paths of version 1,
// the first that names a pod counts, else the first that names a container,
// else the first that names a unit.
func Parse(text string) Owner {
	var best Owner
	for line := range strings.Lines(text) {
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":") // the hierarchy's number
		if !ok {
			continue
		}
		_, path, ok := strings.Cut(rest, ":") // its controllers
		if !ok {
			continue
		}
		if o := ParsePath(path); o.rank() > best.rank() {
			best = o
		}
	}
	return best
}

func (o Owner) rank() int {
	switch {
	case o.PodUID != "":
		return 3
	case o.ContainerID != "":
		return 2
	case o.Unit != "":
		return 1
	default:
		return 0
	}
}

// ParsePath parses one path, which may start at the root of the hierarchy or
// anywhere above the pod. The innermost pod and container count, since a node
// may itself be a container.
func ParsePath(path string) Owner {
	var o Owner
	above := ""
	for part := range strings.SplitSeq(path, "/") {
		// A runtime configured for systemd under a kubelet that is not has all
		// three in one name, slice:prefix:container.
		if slice, name, ok := strings.Cut(part, ":"); ok {
			o.read(slice, above)
			o.read(strings.ReplaceAll(name, ":", "-"), slice)
		} else {
			o.read(part, above)
		}
		above = part
	}
	return o
}

// read parses one name of the path; above is the name before it.
func (o *Owner) read(name, above string) {
	if uid, ok := podUID(strings.TrimSuffix(name, ".slice")); ok {
		*o = Owner{PodUID: uid}
		return
	}
	scope := strings.TrimSuffix(name, ".scope")
	prefix, id := "", scope
	if i := strings.LastIndexByte(scope, '-'); i >= 0 {
		prefix, id = scope[:i], scope[i+1:]
	}
	switch {
	case len(id) == 64 && hexadecimal(id) && prefix != "crio-conmon" && prefix != "libpod-conmon":
		o.ContainerID, o.Runtime = id, runtimeOf(prefix, above)
		o.Unit = ""
	case strings.HasSuffix(name, ".service"), strings.HasSuffix(name, ".scope"):
		if o.ContainerID == "" && o.PodUID == "" {
			o.Unit = strings.ToValidUTF8(name, "?")
		}
	}
}

func runtimeOf(prefix, above string) string {
	switch {
	case prefix == "cri-containerd", prefix == "nerdctl":
		return "containerd"
	case prefix == "crio":
		return "cri-o"
	case prefix == "docker", prefix == "" && above == "docker":
		return "docker"
	case prefix == "libpod":
		return "podman"
	default:
		return ""
	}
}

// podUID parses names such as pod1b2f... and kubepods-burstable-pod1b2f_....
// Systemd's names have _ in place of -.
func podUID(name string) (string, bool) {
	i := strings.LastIndex(name, "pod")
	if i < 0 || i > 0 && name[i-1] != '-' {
		return "", false
	}
	uid := strings.ReplaceAll(name[i+len("pod"):], "_", "-")
	switch len(uid) {
	case 32:
		return uid, hexadecimal(uid)
	case 36:
		for i := range len(uid) {
			dash := i == 8 || i == 13 || i == 18 || i == 23
			if dash != (uid[i] == '-') || !dash && !hexadecimal(uid[i:i+1]) {
				return "", false
			}
		}
		return uid, true
	default:
		return "", false
	}
}

func hexadecimal(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

package cgroup

import (
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	uid   = "1b2f3c4d-5e6f-7a8b-9c0d-1e2f3a4b5c6d"
	other = "ffffffff-5e6f-7a8b-9c0d-1e2f3a4b5c6d"
	hash  = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	id    = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	node  = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
)

var systemdUID = strings.ReplaceAll(uid, "-", "_")

func TestParsePath(t *testing.T) {
	for name, tc := range map[string]struct {
		path string
		want Owner
	}{
		"root":    {"/", Owner{}},
		"nothing": {"", Owner{}},

		"containerd, cgroupfs, burstable":                    {"/kubepods/burstable/pod" + uid + "/" + id, Owner{PodUID: uid, ContainerID: id}},
		"containerd, cgroupfs, guaranteed":                   {"/kubepods/pod" + uid + "/" + id, Owner{PodUID: uid, ContainerID: id}},
		"containerd, systemd, burstable":                     {"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + systemdUID + ".slice/cri-containerd-" + id + ".scope", Owner{PodUID: uid, ContainerID: id, Runtime: "containerd"}},
		"containerd, systemd, guaranteed":                    {"/kubepods.slice/kubepods-pod" + systemdUID + ".slice/cri-containerd-" + id + ".scope", Owner{PodUID: uid, ContainerID: id, Runtime: "containerd"}},
		"containerd, systemd's names without it":             {"/system.slice/containerd.service/kubepods-besteffort-pod" + systemdUID + ".slice:cri-containerd:" + id, Owner{PodUID: uid, ContainerID: id, Runtime: "containerd"}},
		"pod without container":                              {"/kubepods/besteffort/pod" + uid, Owner{PodUID: uid}},
		"static pod":                                         {"/kubepods/burstable/pod" + hash + "/" + id, Owner{PodUID: hash, ContainerID: id}},
		"CRI-O, systemd":                                     {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + systemdUID + ".slice/crio-" + id + ".scope", Owner{PodUID: uid, ContainerID: id, Runtime: "cri-o"}},
		"CRI-O, systemd, container's own groups":             {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + systemdUID + ".slice/crio-" + id + ".scope/container", Owner{PodUID: uid, ContainerID: id, Runtime: "cri-o"}},
		"CRI-O, cgroupfs":                                    {"/kubepods/besteffort/pod" + uid + "/crio-" + id, Owner{PodUID: uid, ContainerID: id, Runtime: "cri-o"}},
		"CRI-O, monitor of a container":                      {"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + systemdUID + ".slice/crio-conmon-" + id + ".scope", Owner{PodUID: uid}},
		"Docker under Kubernetes, cgroupfs":                  {"/kubepods/burstable/pod" + uid + "/" + id, Owner{PodUID: uid, ContainerID: id}},
		"Docker under Kubernetes, systemd":                   {"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + systemdUID + ".slice/docker-" + id + ".scope", Owner{PodUID: uid, ContainerID: id, Runtime: "docker"}},
		"systemd within a container of a pod":                {"/kubepods/burstable/pod" + uid + "/" + id + "/init.scope", Owner{PodUID: uid, ContainerID: id}},
		"node in a container, cgroupfs":                      {"/docker/" + node + "/kubelet/kubepods/burstable/pod" + uid + "/" + id, Owner{PodUID: uid, ContainerID: id}},
		"node in a container, systemd":                       {"/system.slice/docker-" + node + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + systemdUID + ".slice/cri-containerd-" + id + ".scope", Owner{PodUID: uid, ContainerID: id, Runtime: "containerd"}},
		"pod within a pod":                                   {"/kubepods/pod" + other + "/" + node + "/kubepods/pod" + uid + "/" + id, Owner{PodUID: uid, ContainerID: id}},
		"seen from another pod's cgroup namespace, cgroupfs": {"/../../pod" + uid + "/" + id, Owner{PodUID: uid, ContainerID: id}},
		"seen from another pod's cgroup namespace, systemd":  {"/../../kubepods-besteffort-pod" + systemdUID + ".slice/cri-containerd-" + id + ".scope", Owner{PodUID: uid, ContainerID: id, Runtime: "containerd"}},
		"another container of the same pod, seen from it":    {"/../cri-containerd-" + id + ".scope", Owner{ContainerID: id, Runtime: "containerd"}},

		"Docker, cgroupfs":       {"/docker/" + id, Owner{ContainerID: id, Runtime: "docker"}},
		"Docker, systemd":        {"/system.slice/docker-" + id + ".scope", Owner{ContainerID: id, Runtime: "docker"}},
		"Docker within Docker":   {"/docker/" + node + "/docker/" + id, Owner{ContainerID: id, Runtime: "docker"}},
		"Podman, systemd":        {"/machine.slice/libpod-" + id + ".scope/container", Owner{ContainerID: id, Runtime: "podman"}},
		"Podman, user":           {"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope", Owner{ContainerID: id, Runtime: "podman"}},
		"Podman, cgroupfs":       {"/libpod_parent/libpod-" + id, Owner{ContainerID: id, Runtime: "podman"}},
		"some other runtime":     {"/ecs/0123/" + id, Owner{ContainerID: id}},
		"service":                {"/system.slice/nginx.service", Owner{Unit: "nginx.service"}},
		"service of an instance": {"/system.slice/system-getty.slice/getty@tty1.service", Owner{Unit: "getty@tty1.service"}},
		"session":                {"/user.slice/user-1000.slice/session-3.scope", Owner{Unit: "session-3.scope"}},
		"init":                   {"/init.scope", Owner{Unit: "init.scope"}},

		"uid too short":           {"/kubepods/pod" + uid[1:] + "/x", Owner{}},
		"uid with other letters":  {"/kubepods/pod" + strings.Replace(uid, "b", "x", 1), Owner{}},
		"dashes in other places":  {"/kubepods/pod" + strings.Replace(uid, "-5", "5-", 1), Owner{}},
		"container id too short":  {"/docker/" + id[1:], Owner{}},
		"a tripod is no pod":      {"/tripod" + uid, Owner{}},
		"kubepods alone":          {"/kubepods.slice/kubepods-burstable.slice", Owner{}},
		"container id upper case": {"/docker/" + strings.ToUpper(id), Owner{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ParsePath(tc.path); got != tc.want {
				t.Errorf("ParsePath(%s)\n got %+v\nwant %+v", tc.path, got, tc.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	pod := "/kubepods/burstable/pod" + uid + "/" + id
	want := Owner{PodUID: uid, ContainerID: id}
	for name, tc := range map[string]struct {
		text string
		want Owner
	}{
		"version 2":                        {"0::" + pod + "\n", want},
		"version 1":                        {"12:pids:" + pod + "\n11:cpu,cpuacct:" + pod + "\n1:name=systemd:" + pod + "\n", want},
		"version 1 with some at the root":  {"3:cpuset:/\n2:memory:" + pod + "\n0::/\n", want},
		"both, version 2 in a service":     {"2:memory:" + pod + "\n0::/system.slice/containerd.service\n", want},
		"both, version 1 in a service":     {"2:memory:/system.slice/containerd.service\n0::" + pod, want},
		"a pod goes before a container":    {"2:memory:/docker/" + id + "\n0::/kubepods/pod" + uid + "\n", Owner{PodUID: uid}},
		"a path with a colon":              {"0::/system.slice/containerd.service/kubepods-pod" + systemdUID + ".slice:cri-containerd:" + id + "\n", Owner{PodUID: uid, ContainerID: id, Runtime: "containerd"}},
		"gone while it was read":           {"", Owner{}},
		"lines that are something else":    {"x\n1:y\n:::\n", Owner{}},
		"no new line at the end, no group": {"0::/", Owner{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Parse(tc.text); got != tc.want {
				t.Errorf("Parse(%q)\n got %+v\nwant %+v", tc.text, got, tc.want)
			}
		})
	}
}

// Users that may create control groups can name them with any bytes; the names
// go into messages that must be UTF-8.
func TestUnitIsText(t *testing.T) {
	if got, want := ParsePath("/user.slice/app-\xff\xfe.service").Unit, "app-?.service"; got != want {
		t.Errorf("unit %q, want %q", got, want)
	}
}

// FuzzParse holds Parse to its contract for any text: it does not panic, and
// ids are well formed.
func FuzzParse(f *testing.F) {
	f.Add("0::/kubepods/pod" + uid + "/" + id)
	f.Add("0::/a:b:c/docker-" + id + ".scope\n1:x:/kubepods-pod" + systemdUID + ".slice")
	f.Fuzz(func(t *testing.T, text string) {
		o := Parse(text)
		if n := len(o.PodUID); n != 0 && n != 32 && n != 36 {
			t.Errorf("pod uid %q", o.PodUID)
		}
		if n := len(o.ContainerID); n != 0 && n != 64 {
			t.Errorf("container id %q", o.ContainerID)
		}
		if !utf8.ValidString(o.Unit) {
			t.Errorf("unit %q", o.Unit)
		}
	})
}

// Package netns finds the network namespaces of a machine and runs functions
// inside them.
//
// A namespace is identified by the inode of its nsfs file, which is the same
// whether a process is in it or it is mounted under a name, as container
// runtimes and `ip netns` do. A [Scanner] lists the namespaces that exist now;
// scan again to notice changes, at about 2 us a process.
//
// Nothing here keeps a namespace alive, but a socket opened inside one does:
// close it once scans no longer show the namespace.
//
// A namespace that the process may not see or enter yields a [MissingError],
// which names the privilege.
package netns

import (
	"errors"
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
)

var (
	// ErrGone means that a namespace no longer exists where it was found.
	ErrGone = errors.New("network namespace is gone")
	// ErrUnsupported means that this system cannot list network namespaces.
	ErrUnsupported = errors.New("system cannot list network namespaces")
)

// Namespace is one network namespace.
type Namespace struct {
	// Inode identifies the namespace among the living ones; a later one may
	// reuse it.
	Inode uint64
	// PIDs holds the first processes found in it, at most four. It is empty
	// when only a mount holds the namespace.
	PIDs []int
	// Name is the name of its mount, for example cni-4a5b, or empty if the
	// process sees no mount.
	Name string
	// Own is set for the process's own namespace.
	Own bool
	// Owner is the owner of the processes, by their control groups. It is not
	// the pod's where pods use the host's namespace.
	Owner cgroup.Owner

	path string // of its nsfs file
}

// Privilege is something that the process may lack.
type Privilege string

// Privileges needed to see and enter namespaces.
const (
	SysAdmin  Privilege = "CAP_SYS_ADMIN"
	SysPtrace Privilege = "CAP_SYS_PTRACE"
	HostPID   Privilege = "the host's PID namespace"
)

// MissingError names a missing privilege.
type MissingError struct {
	Privilege Privilege
	// Err is the kernel's error, nil if the kernel was not asked.
	Err error
}

// Error implements error.
func (e *MissingError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s is missing", e.Privilege)
	}
	return fmt.Sprintf("%s is missing: %v", e.Privilege, e.Err)
}

// Unwrap returns the kernel's error.
func (e *MissingError) Unwrap() error { return e.Err }

// Hint returns a sentence for an operator: what flow data lacks, the missing
// privilege, and how to grant it.
func (e *MissingError) Hint() string {
	switch e.Privilege {
	case SysAdmin:
		return "Flow data lacks connections in other network namespaces (pods): entering them needs the capability CAP_SYS_ADMIN (securityContext.capabilities.add: [SYS_ADMIN], or AmbientCapabilities of the systemd unit)."
	case SysPtrace:
		return "Flow data lacks the network namespaces of other users' processes: reading /proc/PID/ns needs the capability CAP_SYS_PTRACE, and neither hidepid on /proc nor a security module (AppArmor, SELinux) may forbid it."
	case HostPID:
		return "The agent sees only processes of its own PID namespace, so it finds the network namespaces of other pods and containers only where they are mounted: run the agent in the host's PID namespace (hostPID: true)."
	default:
		return e.Error()
	}
}

// Options control where to look. The zero value suits an agent that shares the
// host's file system.
type Options struct {
	// ProcRoot is the path of the host's /proc; empty means /proc.
	ProcRoot string
	// Dirs are the directories in which namespaces are mounted under names; nil
	// means /run/netns and /run/docker/netns.
	Dirs []string
}

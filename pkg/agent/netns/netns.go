// Package netns finds the network namespaces of a machine and runs functions inside them.
//
// A namespace is known by the inode of its nsfs file, which is the same however it is found: as that of a
// process, or mounted under a name where container runtimes and `ip netns` put theirs. A [Scanner] lists what there
// is now; who wants to notice changes scans again, which takes about 2 us a process.
//
// Nothing here keeps a namespace alive, but what a function opens inside one does: sockets are to be closed when
// the namespace is in no scan any more.
//
// What the process may not see or enter is a [MissingError], which names the privilege.
package netns

import (
	"errors"
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
)

var (
	// ErrGone says that a namespace is not where it was found any more.
	ErrGone = errors.New("network namespace is gone")
	// ErrUnsupported says that this system has no network namespaces that could be listed.
	ErrUnsupported = errors.New("system has no network namespaces")
)

// Namespace is one network namespace.
type Namespace struct {
	// Inode is its number; no other living namespace has it, a later one may.
	Inode uint64
	// PIDs are the lowest of the processes in it, at most four, none where only a mount holds it.
	PIDs []int
	// Name is the name of its mount, for example cni-4a5b, empty when it has none that the process sees.
	Name string
	// Own is set for the namespace that the process itself is in.
	Own bool
	// Owner is whom the processes belong to, by their control groups. Where pods use the host's namespace it
	// is not of these.
	Owner cgroup.Owner

	path string // of its nsfs file
}

// Privilege is something that the process may be in want of.
type Privilege string

// The privileges that seeing and entering namespaces takes.
const (
	SysAdmin  Privilege = "CAP_SYS_ADMIN"
	SysPtrace Privilege = "CAP_SYS_PTRACE"
	HostPID   Privilege = "the host's PID namespace"
)

// MissingError says which privilege is missing, and for what.
type MissingError struct {
	Privilege Privilege
	// Err is what the kernel said, nil where it was not asked.
	Err error
}

// Error says what went wrong.
func (e *MissingError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s is missing", e.Privilege)
	}
	return fmt.Sprintf("%s is missing: %v", e.Privilege, e.Err)
}

// Unwrap returns what the kernel said.
func (e *MissingError) Unwrap() error { return e.Err }

// Sentence says to an operator what is missing, what for, and how it is given.
func (e *MissingError) Sentence() string {
	switch e.Privilege {
	case SysAdmin:
		return "Connections in other network namespaces (pods) are not seen: entering them needs the capability CAP_SYS_ADMIN (securityContext.capabilities.add: [SYS_ADMIN], or AmbientCapabilities of the systemd unit)."
	case SysPtrace:
		return "The network namespaces of other users' processes are not seen: reading /proc/PID/ns needs the capability CAP_SYS_PTRACE, and that neither hidepid on /proc nor a security module (AppArmor, SELinux) forbids it."
	case HostPID:
		return "Only processes of the agent's own PID namespace are seen, so the network namespaces of other pods and containers are found only where they are mounted: run the agent in the host's PID namespace (hostPID: true)."
	default:
		return e.Error()
	}
}

// Options say where to look. The zero value is right for an agent that shares the host's file system.
type Options struct {
	// ProcRoot is where the host's /proc is; empty is /proc.
	ProcRoot string
	// Dirs are where namespaces are mounted under names; nil is /run/netns and /run/docker/netns.
	Dirs []string
}

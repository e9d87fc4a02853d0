//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// separate starts a program in new namespaces for network, processes and
// mounts.
func separate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
}

// settleIn prepares the new namespaces: /proc of its own processes, and a
// network that routes.
func settleIn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for name, value := range map[string]string{
		"ipv4/ip_forward":                  "1",
		"ipv4/conf/all/rp_filter":          "0",
		"ipv4/conf/default/rp_filter":      "0",
		"ipv6/conf/all/forwarding":         "1",
		"ipv4/conf/all/send_redirects":     "0",
		"ipv4/conf/default/send_redirects": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// enterVariable tells a process of this program to become another program in
// the network namespace of the given process.
const enterVariable = "NETLAB_ENTER"

// within prepares cmd to run in the network namespace of a process, with its
// own /etc/resolv.conf and /etc/hosts.
func within(cmd *exec.Cmd, pid int, etc string, uid int) {
	cmd.Env = append(cmd.Env, enterVariable+"="+strconv.Itoa(pid), enterVariable+"_ETC="+etc, enterVariable+"_UID="+strconv.Itoa(uid))
	cmd.Args = append([]string{"/proc/self/exe", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/proc/self/exe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
}

// maybeEnter becomes the program that within was asked for. It returns false
// when this is no such process.
func maybeEnter() bool {
	pid := os.Getenv(enterVariable)
	if pid == "" {
		return false
	}
	err := enter(pid, os.Getenv(enterVariable+"_ETC"), os.Getenv(enterVariable+"_UID"), os.Args[1:])
	fmt.Fprintln(os.Stderr, "netlab: enter:", err)
	os.Exit(1)
	return true
}

func enter(pid, etc, uid string, argv []string) error {
	// The thread that executes the program decides about its network namespace.
	runtime.LockOSThread()
	ns, err := os.Open("/proc/" + pid + "/ns/net")
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	_ = ns.Close()
	for _, name := range []string{"resolv.conf", "hosts"} {
		if err := unix.Mount(etc+"/"+name, "/etc/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /etc/%s: %w", name, err)
		}
	}
	if id, err := strconv.Atoi(uid); err != nil {
		return err
	} else if id != 0 {
		if err := syscall.Setgid(id); err != nil {
			return err
		}
		if err := syscall.Setuid(id); err != nil {
			return err
		}
	}
	var env []string
	for _, v := range os.Environ() {
		if len(v) < len("NETLAB_") || v[:len("NETLAB_")] != "NETLAB_" {
			env = append(env, v)
		}
	}
	return unix.Exec(argv[0], argv, env)
}

// openTun creates a tun device and returns it as a file.
func openTun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("create tun device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

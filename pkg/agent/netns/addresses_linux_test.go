package netns

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
)

func TestAddresses(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("mfa%d", os.Getpid())
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %v: %v: %s", args, err, out)
		}
	}
	run("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	run("-n", name, "link", "set", "lo", "up") // brings 127.0.0.1 and ::1
	run("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	for _, a := range []string{"10.96.1.2/24", "10.96.1.1/24", "fd00:96::1/64", "fe80::5/64", "169.254.1.1/16"} {
		run("-n", name, "addr", "add", a, "dev", "eth0")
	}
	run("-n", name, "addr", "add", "10.96.1.1/32", "dev", "eth1") // twice
	for _, ns := range scan(t, NewScanner(Options{})) {
		if ns.Name != name {
			continue
		}
		got, err := Addresses(ns)
		want := []netip.Addr{netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("10.96.1.2"), netip.MustParseAddr("fd00:96::1")}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Addresses = %v, %v, want %v", got, err, want)
		}
		return
	}
	t.Error("namespace not found")
}

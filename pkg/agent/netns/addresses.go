package netns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Addresses returns the addresses of a namespace's devices, sorted, without
// those that mean something to one host or link only: loopback, link-local,
// multicast and unspecified ones. It returns the errors of Do.
func Addresses(ns Namespace) ([]netip.Addr, error) {
	var found []net.Addr
	err := Do(ns, func() (err error) {
		found, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs := make([]netip.Addr, 0, len(found))
	for _, f := range found {
		prefix, ok := f.(*net.IPNet)
		if !ok {
			continue
		}
		a, ok := netip.AddrFromSlice(prefix.IP)
		if a = a.Unmap(); ok && a.IsGlobalUnicast() {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

package agent

import (
	"net/netip"
	"testing"
)

// On one host with the server the agent still knows an address that the flows of
// local applications have.
func TestOwnAddressIsNeverLoopback(t *testing.T) {
	id, err := Identity{}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"127.0.0.1:20035", "localhost:20035", "[::1]:20035", "nowhere.invalid:20035"} {
		got := ownAddress(server, id.Addresses)
		if got.IsLoopback() || got.IsValid() != (len(id.Addresses) > 0) {
			t.Errorf("server %s: address %s, the host has %v", server, got, id.Addresses)
		}
	}
	if got := ownAddress("127.0.0.1:20035", []string{"192.0.2.7"}); got.IsLoopback() || !got.IsValid() {
		t.Errorf("address %s", got)
	}
	f := &forwarder{host: netip.MustParseAddr("192.0.2.7")}
	if got := f.addressOf(netip.MustParseAddr("::ffff:127.0.0.1")); got != f.host {
		t.Errorf("a local application gets %s", got)
	}
}

package netlab

import (
	"net/netip"
	"testing"
)

func TestParseSocket(t *testing.T) {
	const line = "   3: 114D4D0A:1F90 144D4D0A:C350 01 00000000:00000000 02:000005DC 00000000     0        0 12345 2 0000000000000000 20 4 30 10 -1\n"
	got, state, ok := parseSocket(line)
	want := ends{netip.MustParseAddrPort("10.77.77.17:8080"), netip.MustParseAddrPort("10.77.77.20:50000")}
	if got != want || state != 1 || !ok {
		t.Errorf("parseSocket = %v, %d, %t, want %v in state 1", got, state, ok, want)
	}
	if _, _, ok := parseSocket("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"); ok {
		t.Error("the header line was parsed as a socket")
	}
}

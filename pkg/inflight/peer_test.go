package inflight

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }

func shared(requests int) *Budget {
	return New(Limits{RequestBytes: 64 * mib, Bytes: 256 * mib, Requests: requests, PeerShare: 0.5})
}

// fill enters by every peer in turn until none is admitted, and returns how many each got
// in.
func fill(size int64, peers ...*Peer) []int {
	entered := make([]int, len(peers))
	for more := true; more; {
		more = false
		for i, p := range peers {
			if _, why := p.EnterAtMost(size); why == "" {
				entered[i]++
				more = true
			}
		}
	}
	return entered
}

func TestAPeerLeavesRoomForOthers(t *testing.T) {
	b := shared(1000)
	noisy := make([]*Peer, 11)
	for i := range noisy {
		noisy[i] = b.Peer(addr(1))
	}
	total := 0
	for _, n := range fill(1, noisy...) {
		if n == 0 {
			t.Error("a connection got no request in")
		}
		total += n
	}
	if total > 500 || total < 450 {
		t.Errorf("one address holds %d of 1000 requests, want nearly half", total)
	}
	if _, why := b.Peer(addr(1)).EnterAtMost(1); why != "" {
		t.Errorf("a new connection of the noisy address is refused for %s", why)
	}
	if n := fill(1, b.Peer(addr(2)))[0]; n < 150 {
		t.Errorf("a quiet address gets %d requests in beside it, want at least 150", n)
	}
}

func TestBytesAreSharedToo(t *testing.T) {
	b := shared(1 << 20)
	noisy, quiet := b.Peer(addr(1)), b.Peer(addr(2))
	held := int64(0)
	for {
		granted, why := noisy.EnterAtMost(mib)
		if why != "" {
			break
		}
		if noisy.Resize(granted, 8*mib) != "" {
			noisy.Leave(granted)
			break
		}
		held += 8 * mib
	}
	if held > 128*mib || held < 64*mib {
		t.Errorf("one connection holds %d MiB of 256", held/mib)
	}
	granted, why := quiet.Enter()
	if why != "" || quiet.Resize(granted, 64*mib) != "" {
		t.Error("the largest request of a quiet peer does not fit beside it")
	}
	if granted != mib {
		t.Errorf("the quiet peer's unread request counts as %d bytes: the noisy peer's size was used", granted)
	}
}

func TestOnlyRequestMayTakeEverything(t *testing.T) {
	b := New(Limits{RequestBytes: 64 * mib, Bytes: 64 * mib, Requests: 1, PeerShare: 0.5})
	p := b.Peer(addr(1))
	granted, why := p.Enter()
	if why != "" || p.Resize(granted, 64*mib) != "" {
		t.Error("the largest request does not fit into an empty budget")
	}
}

func TestFullShareIsNoLimit(t *testing.T) {
	b := New(Limits{RequestBytes: mib, Bytes: 256 * mib, Requests: 100, PeerShare: 1})
	if n := fill(1, b.Peer(addr(1)))[0]; n != 100 {
		t.Errorf("one peer gets %d of 100 requests", n)
	}
}

func TestAddressesOfOneNetworkAreOnePeer(t *testing.T) {
	for _, same := range [][2]string{{"2001:db8::1", "2001:db8::ffff:1"}, {"::ffff:10.0.0.1", "10.0.0.1"}, {"fe80::1%eth0", "fe80::2"}} {
		if a, b := Network(netip.MustParseAddr(same[0])), Network(netip.MustParseAddr(same[1])); a != b {
			t.Errorf("%s is counted as %s, %s as %s", same[0], a, same[1], b)
		}
	}
	if a, b := Network(netip.MustParseAddr("10.0.0.1")), Network(netip.MustParseAddr("10.0.0.2")); a == b {
		t.Errorf("two IPv4 addresses are counted as %s", a)
	}
}

// The sums always match what the peers hold, no bound is exceeded, and nothing remains
// when all have left.
func TestPeersAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := New(Limits{RequestBytes: 100, Bytes: 1000, Requests: 20, PeerShare: rapid.SampledFrom([]float64{0, 0.3, 0.5, 1}).Draw(t, "share")})
		type request struct {
			peer    *Peer
			granted int64
		}
		var peers []*Peer
		var in []request
		for range rapid.IntRange(1, 5).Draw(t, "peers") {
			peers = append(peers, b.Peer(addr(rapid.IntRange(1, 3).Draw(t, "address"))))
		}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 3).Draw(t, "op"); {
			case op == 0:
				p := rapid.SampledFrom(peers).Draw(t, "peer")
				if granted, why := p.Enter(); why == "" {
					in = append(in, request{p, granted})
				}
			case len(in) == 0:
			case op == 3:
				i := rapid.IntRange(0, len(in)-1).Draw(t, "leaves")
				in[i].peer.Leave(in[i].granted)
				in = append(in[:i], in[i+1:]...)
			default:
				r := &in[rapid.IntRange(0, len(in)-1).Draw(t, "resized")]
				size := rapid.Int64Range(1, 100).Draw(t, "size")
				if why := map[int]func(int64, int64) Refusal{1: r.peer.Resize, 2: r.peer.Grow}[op](r.granted, size); why == "" {
					r.granted = size
				}
			}
			sum := int64(0)
			for _, r := range in {
				sum += r.granted
			}
			if bytes, requests := b.InFlight(); bytes != sum || requests != len(in) || bytes > 1000 || requests > 20 {
				t.Fatalf("%d bytes of %d requests in flight, want %d of %d", bytes, requests, sum, len(in))
			}
		}
		for _, p := range peers {
			p.Close()
			p.Close()
		}
		for _, r := range in {
			r.peer.Leave(r.granted)
		}
		if bytes, requests := b.InFlight(); bytes != 0 || requests != 0 || len(b.accounts) != 0 {
			t.Fatalf("%d bytes, %d requests and %d accounts are left", bytes, requests, len(b.accounts))
		}
	})
}

// A handler may start after its connection has ended. It counts for its address, together
// with a new connection.
func TestRequestAfterCloseCountsForItsAddress(t *testing.T) {
	b := New(Limits{RequestBytes: 10, Bytes: 100, Requests: 100, PeerShare: 0.5})
	late, next := b.Peer(netip.MustParseAddr("192.0.2.1")), (*Peer)(nil)
	late.Close()
	next = b.Peer(netip.MustParseAddr("192.0.2.1"))
	granted, why := late.Enter()
	if why != "" || late.account != next.account {
		t.Fatalf("Enter after Close: %q, and an account of its own: %v", why, late.account != next.account)
	}
	next.Close()
	late.Leave(granted)
	if n := len(b.accounts); n != 0 {
		t.Errorf("%d accounts are left", n)
	}
}

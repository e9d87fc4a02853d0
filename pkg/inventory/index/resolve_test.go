package index

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const second = uint64(time.Second)

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func pod(uid string, seen uint64, addresses ...*agentv1.PodAddress) *agentv1.Pod {
	return &agentv1.Pod{Cluster: "c", Uid: uid, Name: "pod-" + uid, Namespace: "shop", Node: "n1", Workload: "web", Addresses: addresses, SeenTimeUnixNano: seen}
}

func held(s string, from, to uint64) *agentv1.PodAddress {
	return &agentv1.PodAddress{Address: addr(s), ValidFromUnixNano: from * second, ValidToUnixNano: to * second}
}

func agent(id, node string, seen uint64, addresses ...string) *agentv1.AgentStatus {
	return &agentv1.AgentStatus{
		Registration:     &agentv1.Registration{AgentId: id, Name: node, Cluster: "c", Addresses: addresses},
		SeenTimeUnixNano: seen * second,
	}
}

func observe(t rapid.TB, x *Index, key string, m proto.Message) {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Observe([]byte(key), value); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	x := New()
	observe(t, x, "pod/c/a", pod("a", 0, held("10.0.0.1", 100, 200)))
	observe(t, x, "pod/c/b", pod("b", 0, held("10.0.0.1", 190, 0), held("fd00::1", 190, 0)))
	onHost := pod("h", 0, held("192.168.0.1", 50, 0))
	onHost.HostNetwork = true
	observe(t, x, "pod/c/h", onHost)
	observe(t, x, "service/c/shop/cart", &agentv1.Service{
		Cluster: "c", Namespace: "shop", Name: "cart", Addresses: [][]byte{addr("10.96.0.1"), addr("10.0.0.1")}, StartTimeUnixNano: 10 * second,
	})
	observe(t, x, "agent/1", agent("1", "n1", 1000, "192.168.0.1", "172.17.0.1", "127.0.0.1", "::1", "fe80::1"))
	observe(t, x, "agent/2", agent("2", "n2", 1001, "192.168.0.2", "172.17.0.1"))
	observe(t, x, "agent/3", agent("3", "n3", 100, "192.168.0.2")) // its node is gone
	tests := map[string]struct {
		cluster, address string
		at               uint64
		want             Kind
		name             string
	}{
		"the pod of then":                   {"c", "10.0.0.1", 150, Pod, "pod-a"},
		"the pod of now":                    {"c", "10.0.0.1", 5000, Pod, "pod-b"},
		"both say so, the later one counts": {"c", "10.0.0.1", 195, Pod, "pod-b"},
		"a little before its time":          {"c", "10.0.0.1", 96, Pod, "pod-a"},
		"before its time it was a service":  {"c", "10.0.0.1", 90, Service, "cart"},
		"mapped":                            {"c", "::ffff:10.0.0.1", 150, Pod, "pod-a"},
		"IPv6":                              {"c", "fd00::1", 200, Pod, "pod-b"},
		"IPv6 with a zone":                  {"c", "fd00::1%eth0", 200, Pod, "pod-b"},
		"another cluster":                   {"d", "10.0.0.1", 150, Nobody, ""},
		"a service":                         {"c", "10.96.0.1", 20, Service, "cart"},
		"a node, not the pod on it":         {"c", "192.168.0.1", 60, Node, "n1"},
		"an address of several nodes":       {"c", "172.17.0.1", 60, Nobody, ""},
		"an address of a node that is gone": {"c", "192.168.0.2", 60, Node, "n2"},
		"loopback":                          {"c", "127.0.0.1", 60, Nobody, ""},
		"link-local":                        {"c", "fe80::1", 60, Nobody, ""},
		"unknown":                           {"c", "1.1.1.1", 60, Nobody, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := x.Lookup(tc.cluster, netip.MustParseAddr(tc.address), tc.at*second)
			if got.Kind != tc.want || got.Name != tc.name {
				t.Errorf("got %+v", got)
			}
		})
	}
	if n := testing.AllocsPerRun(100, func() { x.Lookup("c", netip.MustParseAddr("10.0.0.1"), 150*second) }); n != 0 {
		t.Errorf("a lookup allocates %v times", n)
	}
	for _, key := range []string{"pod/c/a", "pod/c/b", "pod/c/h", "service/c/shop/cart", "agent/1", "agent/2", "agent/3", "pod/c/nobody"} {
		if err := x.Observe([]byte(key), nil); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(New(), x, cmp.AllowUnexported(Index{})); diff != "" {
		t.Errorf("not empty (-want +got):\n%s", diff)
	}
}

func TestObserveRejectsMalformedRecords(t *testing.T) {
	x := New()
	misplaced, err := proto.Marshal(pod("a", 0))
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string][]byte{
		"pod/c/b": misplaced, "pod/c/a": {0xff}, "service/c/x/y": {0xff}, "agent/x": {0xff}, "service/c/shop/cart": {}, "agent/y": {},
	} {
		if err := x.Observe([]byte(key), value); err == nil {
			t.Errorf("%s is accepted", key)
		}
	}
	if err := x.Observe([]byte("of-a-later-version/x"), []byte{0xff}); err != nil {
		t.Error(err)
	}
}

func TestMergePod(t *testing.T) {
	ended := func(p *agentv1.Pod, at uint64) *agentv1.Pod {
		p.EndTimeUnixNano = at * second
		return p
	}
	s := func(n uint64) uint64 { return n * second }
	tests := map[string]struct{ known, said, want *agentv1.Pod }{
		"new": {
			nil,
			pod("a", s(20), held("10.0.0.1", 10, 0)),
			pod("a", s(20), held("10.0.0.1", 10, 0)),
		},
		"new, and gone": {
			nil,
			ended(pod("a", s(20), held("10.0.0.1", 10, 0)), 15),
			ended(pod("a", s(20), held("10.0.0.1", 10, 15)), 15),
		},
		"again": {
			pod("a", s(20), held("10.0.0.1", 10, 0)),
			pod("a", s(30), held("10.0.0.1", 11, 0)),
			pod("a", s(30), held("10.0.0.1", 10, 0)),
		},
		"a second family begins with the pod": {
			pod("a", s(20), held("10.0.0.1", 10, 0)),
			pod("a", s(30), held("10.0.0.1", 10, 0), held("fd00::1", 10, 0)),
			pod("a", s(30), held("10.0.0.1", 10, 0), held("fd00::1", 10, 0)),
		},
		"its node was restarted": {
			pod("a", s(20), held("10.0.0.1", 10, 0)),
			pod("a", s(30), held("10.0.0.2", 10, 0)),
			pod("a", s(30), held("10.0.0.2", 30, 0), held("10.0.0.1", 10, 30)),
		},
		"restarted twice, and gone": {
			pod("a", s(30), held("10.0.0.2", 30, 0), held("10.0.0.1", 10, 30)),
			ended(pod("a", s(50), held("10.0.0.3", 10, 0)), 60),
			ended(pod("a", s(50), held("10.0.0.3", 50, 60), held("10.0.0.2", 30, 60), held("10.0.0.1", 10, 30)), 60),
		},
		"gone, and its addresses are not said": {
			pod("a", s(20), held("10.0.0.1", 10, 0)),
			ended(pod("a", s(30)), 25),
			ended(pod("a", s(30), held("10.0.0.1", 10, 25)), 25),
		},
		"taken for gone by mistake": {
			ended(pod("a", s(20), held("10.0.0.1", 10, 20)), 20),
			pod("a", s(30), held("10.0.0.1", 10, 0)),
			pod("a", s(30), held("10.0.0.1", 10, 0)),
		},
		"an old report": {
			ended(pod("a", s(20), held("10.0.0.1", 10, 20)), 20),
			pod("a", s(15), held("10.0.0.1", 10, 0)),
			ended(pod("a", s(20), held("10.0.0.1", 10, 20)), 20),
		},
		"an end before the beginning": {
			nil,
			ended(pod("a", s(20), held("10.0.0.1", 10, 0)), 5),
			ended(pod("a", s(20), held("10.0.0.1", 10, 10)), 5),
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			known, said := proto.CloneOf(tc.known), proto.CloneOf(tc.said)
			got := MergePod(known, said)
			if diff := cmp.Diff(tc.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !proto.Equal(known, tc.known) || !proto.Equal(said, tc.said) {
				t.Error("an argument was changed")
			}
			if again := MergePod(got, said); !proto.Equal(got, again) {
				t.Errorf("the same report again makes a difference: %v", cmp.Diff(got, again, protocmp.Transform()))
			}
		})
	}
}

func TestKeysAreOfOneThing(t *testing.T) {
	a := PodKey(&agentv1.Pod{Cluster: "x/y", Uid: "u"})
	b := PodKey(&agentv1.Pod{Cluster: "x%2Fy", Uid: "u"})
	if a != "pod/x%2Fy/u" || b != "pod/x%252Fy/u" {
		t.Errorf("%q, %q", a, b)
	}
	if got := ServiceKey(&agentv1.Service{Cluster: "x", Namespace: "shop", Name: "cart"}); got != schema.KeyService+"x/shop/cart" {
		t.Error(got)
	}
}

// Pods come, move and go while addresses are reused. An Index that received every record,
// in any batches, knows at any time who held an address, and one that received only the
// last record of each pod, as after compaction, returns the same.
func TestIndexKnowsTheWorld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type life struct {
			uid      string
			address  int
			from, to uint64
		}
		const step = 100 // seconds, far more than slack
		whole, compacted := New(), New()
		records := map[string]*agentv1.Pod{}
		var history []*life
		living := map[string]*life{}
		owner := map[int]string{}
		report := func(now uint64, l *life) {
			said := pod(l.uid, now*second, held(fmt.Sprintf("10.0.0.%d", l.address), l.from, 0))
			if l.to != 0 {
				said.EndTimeUnixNano = l.to * second
			}
			key := PodKey(said)
			records[key] = MergePod(records[key], said)
			observe(t, whole, key, records[key])
			for range rapid.IntRange(0, 1).Draw(t, "again") {
				records[key] = MergePod(records[key], said)
				observe(t, whole, key, records[key])
			}
		}
		now, born := uint64(1000), 0
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			now += step
			address := rapid.IntRange(1, 4).Draw(t, "address")
			switch uid, taken := owner[address]; {
			case !taken:
				born++
				l := &life{fmt.Sprint(born), address, now, 0}
				history, living[l.uid], owner[address] = append(history, l), l, l.uid
				report(now, l)
			case rapid.Bool().Draw(t, "moves"):
				l := living[uid]
				free := 0
				for a := 1; a <= 4; a++ {
					if _, taken := owner[a]; !taken {
						free = a
					}
				}
				if free == 0 {
					report(now, l) // the periodic report
					continue
				}
				l.to = now
				delete(owner, address)
				next := &life{uid, free, now, 0}
				history, living[uid], owner[free] = append(history, next), next, uid
				report(now, next)
			default:
				l := living[uid]
				l.to = now
				delete(owner, address)
				report(now, l)
			}
		}
		for key, p := range records {
			observe(t, compacted, key, p)
		}
		for at := uint64(1000 + step/2); at <= now; at += step {
			for address := 1; address <= 4; address++ {
				want := ""
				for _, l := range history {
					if l.address == address && l.from <= at && (l.to == 0 || at < l.to) {
						want = l.uid
					}
				}
				where := netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", address))
				for name, x := range map[string]*Index{"whole": whole, "compacted": compacted} {
					got := x.Lookup("c", where, at*second)
					// A pod that held an address twice counts as its holder in between,
					// and of other holders in that time the last one wins.
					again := func(uid string) bool {
						lives := 0
						for _, l := range history {
							if l.uid == uid && l.address == address {
								lives++
							}
						}
						return lives > 1
					}
					if again(got.UID) || again(want) {
						continue
					}
					if got.UID != want {
						t.Fatalf("%s: %s at %d belongs to %q, want %q", name, where, at, got.UID, want)
					}
				}
			}
		}
	})
}

func FuzzObserve(f *testing.F) {
	f.Add("pod/c/a", []byte{0xa, 1, 'a'})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		x := New()
		if x.Observe([]byte(key), value) == nil {
			if err := x.Observe([]byte(key), nil); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(New(), x, cmp.AllowUnexported(Index{}), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	x := New()
	for i := range 10_000 {
		p := pod(fmt.Sprint(i), 0, held(fmt.Sprintf("10.1.%d.%d", i/250, i%250), 10, 0))
		x.PutPod(p)
	}
	where := netip.MustParseAddr("10.1.3.4")
	for b.Loop() {
		if x.Lookup("c", where, 100*second).Kind != Pod {
			b.Fatal()
		}
	}
}

package delivery

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// walkFaults lets TestWalk look at more faults than it has time for by default.
var walkFaults = flag.Int("walk-faults", 0, "how many more faults each world of TestWalk has")

// walk is a search of all states of a world: first those that come about without
// a fault, then those with one, and so on, each in the fewest steps. A state that
// was seen with fewer faults before can bring nothing new.
type walk struct {
	world  *walkWorld
	states []walkState
	faults []int8 // by state: how many more may come
	known  map[walkState]int32
	parent []int32   // by state
	todo   [][]int32 // by faults
	// edges lists the states before each state by steps of progress: heads[s] is
	// the last entry of state s, and each entry names the one before it.
	heads []int32
	edges []walkEdge
}

type walkEdge struct{ from, before int32 }

// search returns the number of the first state that breaks an invariant, and what it breaks; -1 when there is none.
func (w *walk) search() (state int32, broken string) {
	w.known = make(map[walkState]int32)
	w.todo = make([][]int32, w.world.faults+1)
	for _, s := range w.world.begin() {
		w.world.canonical(&s)
		w.add(s, -1)
	}
	for left := int(w.world.faults); left >= 0; left-- {
		for next := 0; next < len(w.todo[left]); next++ {
			n := w.todo[left][next]
			if int(w.faults[n]) > left {
				continue
			}
			s := w.states[n]
			s.faults = int8(left)
			if broken := w.world.violation(&s); broken != "" {
				return n, broken
			}
			w.world.next(&s, func(t walkState, progress bool, _ func() string) {
				to := w.add(t, n)
				if progress && to != n {
					w.edges = append(w.edges, walkEdge{n, w.heads[to]})
					w.heads[to] = int32(len(w.edges) - 1)
				}
			})
		}
		w.todo[left] = nil
	}
	return w.stuck()
}

func (w *walk) add(s walkState, parent int32) int32 {
	left := s.faults
	s.faults = 0
	n, ok := w.known[s]
	if !ok {
		n = int32(len(w.states))
		w.known[s] = n
		w.states = append(w.states, s)
		w.faults = append(w.faults, left)
		w.parent = append(w.parent, parent)
		w.heads = append(w.heads, -1)
		w.todo[left] = append(w.todo[left], n)
	} else if left > w.faults[n] { // it was seen behind a fault, and is reached without
		w.faults[n], w.parent[n] = left, parent
		w.todo[left] = append(w.todo[left], n)
	}
	return n
}

// stuck returns a state from which nothing but a fault leads to an end of all work.
func (w *walk) stuck() (state int32, broken string) {
	reached := make([]bool, len(w.states))
	var queue []int32
	for n := range w.states {
		if w.world.quiet(&w.states[n]) {
			reached[n] = true
			queue = append(queue, int32(n))
		}
	}
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for e := w.heads[n]; e >= 0; e = w.edges[e].before {
			if from := w.edges[e].from; !reached[from] {
				reached[from] = true
				queue = append(queue, from)
			}
		}
	}
	for n, ok := range reached {
		if !ok {
			return int32(n), "from here on nothing leads to the end of the work"
		}
	}
	return -1, ""
}

// story tells how a state came about, in the fewest steps.
func (w *walk) story(state int32, broken string) string {
	var path []int32
	for n := state; n >= 0; n = w.parent[n] {
		path = append([]int32{n}, path...)
	}
	var out strings.Builder
	if have := w.states[path[0]].have(); have != 0 {
		fmt.Fprintf(&out, "row %s is stored\n", itemNames(have))
	}
	w.world.telling = true
	for i := 1; i < len(path); i++ {
		text := ""
		before := w.states[path[i-1]]
		before.faults = w.faults[path[i-1]]
		w.world.next(&before, func(t walkState, _ bool, tell func() string) {
			if t.faults = 0; text == "" && t == w.states[path[i]] {
				text = tell()
			}
		})
		fmt.Fprintf(&out, "%s\n", text)
	}
	fmt.Fprintf(&out, "-> %s\n", broken)
	return out.String()
}

// The worlds, and the faults that each has by default. Items: a and b are new; c may be stored already, and is sent again.
var (
	walkOne   = walkWorld{logs: [][]walkRecord{{{item: 0}, {item: 0}, {item: 0, resend: true}}}, faults: 2}
	walkGrows = walkWorld{logs: [][]walkRecord{{{item: 2, resend: true}, {item: 0}, {item: 1}}}, before: []int8{2}, growing: true, faults: 1}
	walkBad   = walkWorld{logs: [][]walkRecord{{{item: 0}, {item: 1, bad: true}}}, faults: 1}
	walkTwo   = walkWorld{logs: [][]walkRecord{{{item: 0}, {item: 0}}, {{item: 2, resend: true}}}, before: []int8{2}, faults: 1}
	walkNew   = walkWorld{logs: [][]walkRecord{{{item: 0}, {item: 1}, {item: 2}}}}
	walkThree = walkWorld{logs: [][]walkRecord{{{item: 0}, {item: 1, bad: true}}, {{item: 2}}}, faults: 0}
)

// TestWalk visits every state that a small world can get into: one or two
// partitions with three records, among them a copy and one that was sent before,
// or one that ClickHouse refuses; two processes; and a few faults at any moment:
// a process is killed, or stopped until its lease has ended, or told to give a
// partition up; a commit, an INSERT, a look-up or dead letters fail, or the answer
// is lost, or the request is executed late; ClickHouse dies between a token and
// its rows, or forgets tokens; a view fails; the group's offsets are deleted. In
// every state this must hold:
//
//   - No row is stored twice.
//   - The position has not passed a record whose row is neither stored nor diverted,
//     so nothing that was acknowledged is lost.
//   - Without another fault, all work can come to its end.
//
// With -walk-faults 1 it takes minutes and some gigabytes.
//
// Rows are sent by who has the lease only: that is clickhouse.Guard's promise, and
// part of the world.
func TestWalk(t *testing.T) {
	for name, world := range map[string]walkWorld{
		"one partition": walkOne, "growing log": walkGrows, "refused row": walkBad, "two partitions": walkTwo, "two partitions and a refused row": walkThree,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			world.faults += int8(*walkFaults)
			w := &walk{world: &world}
			state, broken := w.search()
			t.Logf("%d faults: %d states, %d owners, %d steps of progress", world.faults, len(w.states), len(world.owners), len(w.edges))
			if state >= 0 {
				t.Errorf("%s", w.story(state, broken))
			}
		})
	}
}

// TestWalkFindsWhatIsBroken breaks the world or the machine in a way that the
// protocol is there to prevent. The walk must find the harm; testdata/broken holds
// the shortest story of each.
func TestWalkFindsWhatIsBroken(t *testing.T) {
	for broken, world := range map[string]walkWorld{
		"no second look-up":           walkOne,
		"no look-up":                  walkOne,
		"no settle":                   walkOne,
		"only own inserts settled":    walkTwo,
		"committed before the insert": walkOne,
		"no plan":                     walkOne,
		"lease ignored":               walkOne,
		"token reused":                walkOne,
		"late commit":                 walkNew,
		"offsets reset":               walkOne,
		"short window":                walkOne,
	} {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			world.broken, world.faults = broken, 2
			w := &walk{world: &world}
			state, found := w.search()
			if state < 0 {
				t.Fatalf("nothing found in %d states", len(w.states))
			}
			story := w.story(state, found)
			file := filepath.Join("testdata", "broken", strings.ReplaceAll(broken, " ", "_")+".txt")
			if flag.Lookup("update").Value.String() == "true" {
				if err := os.WriteFile(file, []byte(story), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), story); diff != "" {
				t.Errorf("%s (-want +got; -update rewrites it):\n%s", file, diff)
			}
		})
	}
}

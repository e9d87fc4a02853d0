package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

const groupID = "metaflow-test"

// patience bounds the wait for an expected event.
const patience = wait.Patience

var errCut = errors.New("connection cut")

// member is a running Group whose handlers follow the test.
type member struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	claims map[int]*kafka.Claim // of the running handlers
	change chan struct{}        // closed and replaced at each change
}

// startMember joins the group. Each handler calls last after its context ended, unless
// last is nil.
func startMember(t *testing.T, client *kafka.Client, last func(*kafka.Claim)) *member {
	t.Helper()
	return startMemberOf(t, client, topic, last)
}

var memberOptions = kafka.GroupOptions{
	SessionTimeout: time.Second, RebalanceTimeout: 10 * time.Second, Heartbeat: 50 * time.Millisecond,
}

// startMemberOf joins the group of any topic. The group has the name of the topic, except
// for topic itself.
func startMemberOf(t *testing.T, client *kafka.Client, topic string, last func(*kafka.Claim)) *member {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{t: t, cancel: cancel, done: make(chan error, 1), claims: map[int]*kafka.Claim{}, change: make(chan struct{})}
	group := client.NewGroup(groupOf(topic), topic, memberOptions)
	group.Watch(50 * time.Millisecond)
	go func() {
		m.done <- group.Run(ctx, func(ctx context.Context, c *kafka.Claim) error {
			m.set(c.Partition(), c)
			<-ctx.Done()
			m.set(c.Partition(), nil)
			if last != nil {
				last(c)
			}
			return nil
		})
	}()
	t.Cleanup(m.stop)
	return m
}

func groupOf(name string) string {
	if name == topic {
		return groupID
	}
	return name
}

func (m *member) stop() {
	m.cancel()
	if err, ok := <-m.done; ok {
		close(m.done)
		if err != nil {
			m.t.Errorf("Group.Run = %v", err)
		}
	}
}

func (m *member) set(partition int, c *kafka.Claim) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c == nil {
		delete(m.claims, partition)
	} else {
		m.claims[partition] = c
	}
	close(m.change)
	m.change = make(chan struct{})
}

// now returns the partitions that the member currently owns.
func (m *member) now() map[int]*kafka.Claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.claims)
}

// await waits until the member owns exactly n partitions, and returns them.
func (m *member) await(n int) map[int]*kafka.Claim {
	m.t.Helper()
	timeout := time.After(patience)
	for {
		m.mu.Lock()
		claims, change := maps.Clone(m.claims), m.change
		m.mu.Unlock()
		if len(claims) == n {
			return claims
		}
		select {
		case <-change:
		case <-timeout:
			m.t.Fatalf("member owns %d partitions, want %d", len(claims), n)
		}
	}
}

func partitionsOf(claims ...map[int]*kafka.Claim) []int {
	var all []int
	for _, m := range claims {
		for p := range m {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return all
}

func TestSecondMemberTakesHalf(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 4)
	first := startMember(t, client, nil)
	old := first.await(4)[0]
	lease := old.Lease()
	if time.Until(lease) > memberOptions.SessionTimeout {
		t.Errorf("the lease lasts for %s, longer than a session", time.Until(lease))
	}
	wait.Until(t, "heartbeats extend the lease", func() bool { return old.Lease().After(lease) })

	second := startMember(t, newClient(t, cluster, nil), nil)
	theirs := second.await(2)
	ours := first.await(2)
	if diff := cmp.Diff([]int{0, 1, 2, 3}, partitionsOf(ours, theirs)); diff != "" {
		t.Errorf("partitions of both (-want +got):\n%s", diff)
	}

	if left := time.Until(old.Lease()); left > 0 {
		t.Errorf("the lease of an old generation lasts for another %s", left)
	}
	// The claim of the previous generation is fenced, whoever owns the partition now.
	if err := commit(t.Context(), old, 7, "late"); fault.ClassOf(err) != fault.Fenced {
		t.Errorf("commit of an old generation = %v, want class fenced", err)
	}
	for p, c := range theirs {
		if offset, metadata, err := positionOf(t, c); offset != -1 || metadata != "" || err != nil {
			t.Errorf("partition %d: committed = %d, %q, %v; want nothing", p, offset, metadata, err)
		}
	}

	second.stop()
	first.await(4)
}

// The next owner finds what the last handler committed after its context ended, at a
// rebalance and at shutdown.
func TestLastCommitIsAccepted(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 2)
	var mu sync.Mutex
	var errs []error
	beats := make(chan string)
	cluster.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		select {
		case beats <- req.(*kmsg.HeartbeatRequest).MemberID:
		default:
		}
		return nil, nil, false
	})
	last := func(c *kafka.Claim) {
		// Heartbeats continue while a handler finishes.
		for range 3 {
			for kafka.MemberID(c) != <-beats {
				continue
			}
		}
		err := commit(context.Background(), c, int64(100+c.Generation()), fmt.Sprintf("plan of %d", c.Generation()))
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	first := startMember(t, client, last)
	generation := first.await(2)[0].Generation()
	second := startMember(t, newClient(t, cluster, nil), nil)
	second.await(1)
	committed := func(m *member, want int) {
		t.Helper()
		for p, c := range m.await(len(m.await(1))) {
			offset, metadata, err := positionOf(t, c)
			if offset != int64(100+want) || metadata != fmt.Sprintf("plan of %d", want) || err != nil {
				t.Errorf("partition %d: committed = %d, %q, %v; want %d", p, offset, metadata, err, 100+want)
			}
		}
	}
	committed(second, generation)

	current := -1
	for _, c := range first.await(1) {
		current = c.Generation()
	}
	first.stop()
	mu.Lock()
	defer mu.Unlock()
	if len(errs) != 3 || errors.Join(errs...) != nil {
		t.Errorf("last commits = %v, want three without error", errs)
	}
	claims := second.await(2)
	found := false
	for _, c := range claims {
		offset, _, err := positionOf(t, c)
		found = found || (offset == int64(100+current) && err == nil)
	}
	if !found {
		t.Errorf("the commit at shutdown, in generation %d, was not found by the next owner", current)
	}
}

// A dead member does not leave the group: the others wait for the session timeout.
func TestDeadMemberIsReplaced(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 2)
	survivor := startMember(t, client, nil)
	survivor.await(2)

	victim := startMember(t, newClient(t, cluster, nil), nil)
	victim.await(1)
	var orphaned *kafka.Claim
	for _, c := range victim.await(1) {
		orphaned = c
	}
	cut := func(key kmsg.Key, memberOf func(kmsg.Request) string) {
		cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			return nil, errCut, memberOf(req) == kafka.MemberID(orphaned)
		})
	}
	cut(kmsg.Heartbeat, func(r kmsg.Request) string { return r.(*kmsg.HeartbeatRequest).MemberID })
	cut(kmsg.JoinGroup, func(r kmsg.Request) string { return r.(*kmsg.JoinGroupRequest).MemberID })
	cut(kmsg.LeaveGroup, func(r kmsg.Request) string { return r.(*kmsg.LeaveGroupRequest).Members[0].MemberID })
	survivor.await(2)
	if left := time.Until(orphaned.Lease()); left > 0 {
		t.Errorf("the dead member's lease lasts for another %s", left)
	}
	if err := commit(t.Context(), orphaned, 5, ""); fault.ClassOf(err) != fault.Fenced {
		t.Errorf("commit of a dead member = %v, want class fenced", err)
	}
}

// An error of a handler ends Run after the other handlers have returned.
func TestHandlerErrorEndsRun(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	createTopic(t, client, 3)
	broken := errors.New("disk is full")
	returned := make(chan int, 3)
	err := client.NewGroup(groupID, topic, kafka.GroupOptions{}).Run(t.Context(), func(ctx context.Context, c *kafka.Claim) error {
		defer func() { returned <- c.Partition() }()
		if c.Partition() == 1 {
			return broken
		}
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("Run = %v, want the handler's error", err)
	}
	if len(returned) != 3 {
		t.Errorf("Run returned before all handlers did: %d of 3", len(returned))
	}
}

// A group survives a coordinator that moves or restarts.
func TestGroupOutlivesCoordinatorTrouble(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 1)
	refusals := []*kerr.Error{kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator}
	for _, refusal := range refusals {
		cluster.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
			res := req.ResponseKind().(*kmsg.JoinGroupResponse)
			res.ErrorCode = refusal.Code
			return res, nil, true
		})
	}
	m := startMember(t, client, nil)
	claim := m.await(1)[0]

	// Single lost heartbeats do not end a generation.
	var beats atomic.Int32
	answered := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Heartbeat), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		n := beats.Add(1)
		if n == 5 {
			close(answered)
		}
		return nil, errCut, n <= 3
	})
	<-answered
	if err := commit(t.Context(), claim, 3, "still ours"); err != nil {
		t.Errorf("commit after lost heartbeats = %v", err)
	}
	if offset, metadata, err := positionOf(t, claim); offset != 3 || metadata != "still ours" || err != nil {
		t.Errorf("committed = %d, %q, %v", offset, metadata, err)
	}
}

// A running group notices partitions that are added.
func TestMorePartitionsAreNoticed(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 2)
	ctx, cancel := context.WithCancel(t.Context())
	assigned := make(chan int, 10)
	group := client.NewGroup(groupID, topic, kafka.GroupOptions{Heartbeat: 20 * time.Millisecond})
	group.Watch(50 * time.Millisecond)
	done := make(chan error, 1)
	go func() {
		done <- group.Run(ctx, func(ctx context.Context, c *kafka.Claim) error {
			assigned <- c.Partition()
			<-ctx.Done()
			return nil
		})
	}()
	seen := map[int]int{<-assigned: 1, <-assigned: 1}
	req := kmsg.NewCreatePartitionsRequest()
	added := kmsg.NewCreatePartitionsRequestTopic()
	added.Topic, added.Count = topic, 3
	req.Topics = append(req.Topics, added)
	req.TimeoutMillis = 1000
	if _, err := req.RequestWith(ctx, newFranz(t, cluster)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		select {
		case p := <-assigned:
			seen[p]++
		case <-time.After(patience):
			t.Fatal("the new partition was not assigned")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(map[int]int{0: 2, 1: 2, 2: 1}, seen); diff != "" {
		t.Errorf("times that partitions were assigned (-want +got):\n%s", diff)
	}
}

// The coordinator waits for a stuck handler for the rebalance timeout at most. By then
// the handler's lease is over.
func TestStuckHandlerIsReplaced(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 2)
	opts := memberOptions
	opts.RebalanceTimeout = 2 * time.Second
	claims := make(chan *kafka.Claim, 10)
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck := make(chan error, 1)
	go func() {
		stuck <- client.NewGroup(groupID, topic, opts).Run(ctx, func(_ context.Context, c *kafka.Claim) error {
			claims <- c
			<-release
			return nil
		})
	}()
	old := []*kafka.Claim{<-claims, <-claims}
	heir := make(chan *kafka.Claim, 10)
	begun := time.Now()
	var waiting sync.WaitGroup
	waiting.Go(func() {
		err := newClient(t, cluster, nil).NewGroup(groupID, topic, opts).Run(ctx, func(ctx context.Context, c *kafka.Claim) error {
			heir <- c
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	defer waiting.Wait()
	defer cancel()
	for range old {
		select {
		case <-heir:
		case <-time.After(patience):
			t.Fatal("the partitions were not given to another member")
		}
	}
	t.Logf("it took %s", time.Since(begun))
	for _, c := range old {
		if left := time.Until(c.Lease()); left > 0 {
			t.Errorf("partition %d: the lease lasts for another %s", c.Partition(), left)
		}
		if err := commit(t.Context(), c, 5, ""); fault.ClassOf(err) != fault.Fenced {
			t.Errorf("commit of a stuck handler = %v, want class fenced", err)
		}
	}
	cancel()
	close(release)
	if err := <-stuck; err != nil {
		t.Error(err)
	}
}

// cutConn fails every request of one client while cut is true.
type cutConn struct {
	net.Conn
	cut  *atomic.Bool
	lost *atomic.Int32 // requests
}

func (c cutConn) Write(b []byte) (int, error) {
	if c.cut.Load() {
		c.lost.Add(1)
		return 0, errCut
	}
	return c.Conn.Write(b)
}

// A disconnected member does not notice that another one joins. By the time the new
// member owns the partition, the lease of the old one is over, whichever timeout ended
// it.
func TestLeaseEndsBeforeNextOwner(t *testing.T) {
	leaseEnds(t, func(t *testing.T) []string { return startCluster(t).ListenAddrs() })
}

func leaseEnds(t *testing.T, brokers func(*testing.T) []string) {
	for name, opts := range map[string]kafka.GroupOptions{
		"session shorter":   {SessionTimeout: time.Second, RebalanceTimeout: 4 * time.Second},
		"rebalance shorter": {SessionTimeout: 8 * time.Second, RebalanceTimeout: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts.Heartbeat = 50 * time.Millisecond
			addrs, name := brokers(t), topicName(t)
			adminOf(t, addrs).create(name, 1)
			ctx, cancel := context.WithCancel(t.Context())
			hold := make(chan struct{})
			var running sync.WaitGroup
			defer running.Wait()
			defer cancel()
			defer close(hold)
			join := func(cut *atomic.Bool, lost *atomic.Int32) *kafka.Claim {
				t.Helper()
				client, _ := clientOf(t, addrs)
				client.Intercept(func(c net.Conn) net.Conn { return cutConn{c, cut, lost} })
				claims := make(chan *kafka.Claim, 10)
				running.Go(func() {
					err := client.NewGroup(name, name, opts).Run(ctx, func(_ context.Context, c *kafka.Claim) error {
						claims <- c
						<-hold
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				})
				select {
				case c := <-claims:
					return c
				case <-time.After(patience):
					t.Fatal("the partition was not assigned")
					return nil
				}
			}
			var cut atomic.Bool
			var lost atomic.Int32
			first := join(&cut, &lost)
			renewed := first.Lease()
			wait.Until(t, "heartbeats extend the lease", func() bool { return first.Lease().After(renewed) })
			cut.Store(true)
			wait.Until(t, "the lease is lost", func() bool { return lost.Load() > 0 })
			join(new(atomic.Bool), new(atomic.Int32))
			if left := time.Until(first.Lease()); left > 0 {
				t.Errorf("another member owns the partition, and the lease of the first one lasts for another %s", left)
			}
		})
	}
}

// The session timeout decides how long a silent member keeps its partitions, even if it
// is longer than the default rebalance timeout.
func TestLongSessionLengthensRebalance(t *testing.T) {
	for _, tc := range []struct{ session, rebalance time.Duration }{
		{0, 20 * time.Second},
		{6 * time.Second, 20 * time.Second},
		{45 * time.Second, 90 * time.Second}, // the default of Kafka's own consumers
	} {
		cluster := startCluster(t)
		client := newClient(t, cluster, nil)
		createTopic(t, client, 1)
		var asked atomic.Int64
		cluster.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			asked.Store(int64(req.(*kmsg.JoinGroupRequest).RebalanceTimeoutMillis))
			return nil, nil, false
		})
		session := tc.session
		if session == 0 {
			session = 10 * time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		ran := false
		err := client.NewGroup(groupID, topic, kafka.GroupOptions{SessionTimeout: tc.session}).Run(ctx, func(_ context.Context, c *kafka.Claim) error {
			defer cancel()
			ran = true
			if left := time.Until(c.Lease()); left > session || left < session/2 {
				t.Errorf("session %s: the lease lasts for %s", session, left)
			}
			if c.Grace() != tc.rebalance/4*3 {
				t.Errorf("session %s: Grace() = %s, want %s", session, c.Grace(), tc.rebalance/4*3)
			}
			return nil
		})
		if got := time.Duration(asked.Load()) * time.Millisecond; got != tc.rebalance || err != nil || !ran {
			t.Errorf("session %s: the rebalance timeout is %s, want %s; a partition was assigned: %t, %v", session, got, tc.rebalance, ran, err)
		}
	}
}

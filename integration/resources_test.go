package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/metaflowys/metaflow-server/pkg/testkit/kubetest"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// The test cluster: one address for a pod, held by two pods in turn, and one
// for a service.
const (
	podAddress     = "10.244.1.7"
	serviceAddress = "10.96.0.10"
	firstUID       = "6f1c0a52-7a55-4d0e-9c0e-1f1d2b3c4d5e"
	secondUID      = "7a2d1b63-8b66-4e1f-8d1f-2a2e3c4d5e6f"
	containerID    = "3b1f0c9d8e7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c"
	podVariable    = "METAFLOW_TEST_POD"
)

// maybeBeAPod never returns in the process that [startPod] starts.
func maybeBeAPod() {
	if os.Getenv(podVariable) == "" {
		return
	}
	if err := bePod(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// bePod connects from the pod's address to the service's, repeatedly until its
// input ends.
func bePod() error {
	up := exec.Command("ip", "-batch", "-")
	up.Stdin = strings.NewReader(fmt.Sprintf("link set lo up\naddr add %s/32 dev lo\naddr add %s/32 dev lo\n", podAddress, serviceAddress))
	if out, err := up.CombinedOutput(); err != nil {
		return fmt.Errorf("set the pod's addresses: %w: %s", err, out)
	}
	l, err := net.Listen("tcp", serviceAddress+":80")
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(podAddress)}}
		conn, err := d.Dial("tcp", serviceAddress+":80")
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		time.Sleep(1500 * time.Millisecond) //nolint:forbidigo // longer than the agent's interval: the kernel is asked while the connection lives
		conn.Close()
	}
}

// startPod starts a process like a container runtime does: in its own network
// namespace and, if control groups are version 2, in one named like a pod's. It
// reports whether the control group could be created.
func startPod(t *testing.T) (grouped bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to create a network namespace")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("the program ip is not installed (Debian package iproute2)")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), podVariable+"=1")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	group, err := podGroup(t)
	if err == nil {
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	} else {
		t.Logf("the pod has no control group: %v", err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("the system cannot create network namespaces: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return group != nil
}

// podGroup creates a control group for the first pod, named as by the kubelet
// and a runtime without systemd.
func podGroup(t *testing.T) (*os.File, error) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
			continue
		}
		dirs := []string{filepath.Join(root, fmt.Sprintf("metaflow-test-%d", os.Getpid()))}
		for _, name := range []string{"kubepods", "pod" + firstUID, containerID} {
			dirs = append(dirs, filepath.Join(dirs[len(dirs)-1], name))
		}
		for _, dir := range dirs {
			if err := os.Mkdir(dir, 0o750); err != nil {
				return nil, err
			}
			t.Cleanup(func() { _ = os.Remove(dir) }) // innermost first, after its process ended
		}
		return os.Open(dirs[len(dirs)-1])
	}
	return nil, errors.New("no control groups of version 2")
}

func newPod(uid, name string, began time.Time) *core.Pod {
	controller, start := true, meta.NewTime(began)
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{
			UID: types.UID(uid), Name: name, Namespace: "shop", CreationTimestamp: start, Labels: map[string]string{"pod-template-hash": "5d4f8c7b9"},
			OwnerReferences: []meta.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d4f8c7b9", Controller: &controller}},
		},
		Spec:   core.PodSpec{NodeName: "n1"},
		Status: core.PodStatus{Phase: core.PodRunning, PodIP: podAddress, PodIPs: []core.PodIP{{IP: podAddress}}, StartTime: &start},
	}
}

// A cluster with a node, an agent on it and a server. The agent watches
// Kubernetes, and flows name the pods and services at their ends, including
// flows that arrive late, when the address already belongs to another pod.
// While Kubernetes is down, the agent reports it and flows continue.
func TestPodsAndServices(t *testing.T) {
	api := kubetest.New(t)
	hourAgo := time.Now().Add(-time.Hour).Truncate(time.Second)
	first := newPod(firstUID, "web-1", hourAgo)
	api.Put(first)
	api.Put(&core.Service{
		ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: "cart", CreationTimestamp: meta.NewTime(hourAgo)},
		Spec:       core.ServiceSpec{ClusterIP: serviceAddress, ClusterIPs: []string{serviceAddress}, Ports: []core.ServicePort{{Port: 80}}},
	})
	api.Put(&discovery.EndpointSlice{
		ObjectMeta:  meta.ObjectMeta{Namespace: "shop", Name: "cart-1", Labels: map[string]string{discovery.LabelServiceName: "cart"}},
		AddressType: discovery.AddressTypeIPv4, Endpoints: []discovery.Endpoint{{Addresses: []string{podAddress}}},
	})
	grouped := startPod(t)
	t.Setenv("METAFLOW_FLOW_WRITER_MAX_BATCH_WAIT", "200ms")
	s := startStandalone(t, t.TempDir())
	_ = os.Unsetenv("METAFLOW_FLOW_WRITER_MAX_BATCH_WAIT") // not a key of the agent
	conn := open(t, s.at.ClickHouseNative)
	startAgentOfNode(t, s, api)
	s.eventually(time.Minute, knows(s, "pod", 1))
	s.eventually(time.Minute, knows(s, "service", 1))

	const ends = `SELECT DISTINCT concat(role, ': ', namespace, '/', pod, ' ', pod_uid, ' ', workload, ' on ', node, if(container_id = '', '', ' in a container'),
			' with ', peer_namespace, '/', peer_service, peer_pod, ' ', peer_pod_uid, ' ', peer_workload, ' on ', peer_node) AS line
		FROM metaflow.flows WHERE ip = toIPv6($1) AND agent_id != 'late' AND connections > 0 AND state = 'closed' AND toUnixTimestamp64Nano(start_time) > $2`
	container := ""
	if grouped {
		container = " in a container"
	}
	client := "client: shop/web-1 " + firstUID + " web on n1" + container + " with shop/cart   on "
	s.eventually(time.Minute, answers(conn, []string{client}, ends, podAddress, time.Now().UnixNano()))
	if grouped { // otherwise the process at the service's end is unknown
		server := "server: shop/web-1 " + firstUID + " web on n1" + container + " with shop/web-1 " + firstUID + " web on n1"
		s.eventually(time.Minute, answers(conn, []string{server}, ends, serviceAddress, time.Now().Add(-3*time.Second).UnixNano()))
	}

	s.eventually(time.Minute, answers(conn, []string{"exe"}, "SELECT DISTINCT process AS line FROM metaflow.flows WHERE ip = toIPv6($1) AND process != ''", podAddress))

	api.SetDown(true)
	s.eventually(time.Minute, func() error {
		if list := mustCtl(t, s.at.HTTP, "agent", "list"); !strings.Contains(list, "cannot watch pods") {
			return fmt.Errorf("the agent does not report it: %s", list)
		}
		return nil
	})
	s.eventually(time.Minute, answers(conn, []string{client}, ends, podAddress, time.Now().UnixNano()))
	api.Remove(first)
	replaced := time.Now().Truncate(time.Second)
	api.Put(newPod(secondUID, "web-2", replaced))
	api.ForgetHistory()
	api.SetDown(false)
	s.eventually(time.Minute, knows(s, "pod", 2))

	exportLate(t, s, map[time.Time]uint32{replaced.Add(-10 * time.Minute): 1, replaced.Add(5 * time.Second): 2})
	s.eventually(time.Minute, answers(conn, []string{"1 shop/web-1 " + firstUID, "2 shop/web-2 " + secondUID},
		"SELECT concat(toString(connection), ' ', peer_namespace, '/', peer_pod, ' ', peer_pod_uid) AS line FROM metaflow.flows WHERE agent_id = 'late' ORDER BY line"))

	// A pod's end is when the agent saw it.
	s.eventually(time.Minute, answers(conn, []string{
		fmt.Sprintf("prod %s shop/web-1 %s on n1 Deployment web from %d, ended", podAddress, firstUID, hourAgo.Unix()),
		fmt.Sprintf("prod %s shop/web-2 %s on n1 Deployment web from %d, living", podAddress, secondUID, replaced.Unix()),
	}, `SELECT concat(cluster, ' ', replaceOne(toString(ip), '::ffff:', ''), ' ', namespace, '/', pod, ' ', uid, ' on ', node, ' ', workload_kind, ' ', workload,
			' from ', toString(toUnixTimestamp(valid_from)), multiIf(valid_to > '2100-01-01', ', living', valid_to BETWEEN toDateTime($1) AND now(), ', ended', ', wrong')) AS line
		FROM metaflow.pods ORDER BY line`, replaced.Unix()-1))
	s.eventually(time.Minute, answers(conn, []string{fmt.Sprintf("prod %s shop/cart [80] ['::ffff:%s'] from %d, living", serviceAddress, podAddress, hourAgo.Unix())},
		`SELECT concat(cluster, ' ', replaceOne(toString(ip), '::ffff:', ''), ' ', namespace, '/', service, ' ', toString(ports), ' ', toString(endpoints),
			' from ', toString(toUnixTimestamp(valid_from)), if(valid_to > '2100-01-01', ', living', ', wrong')) AS line FROM metaflow.services`))
	s.eventually(time.Minute, answers(conn, []string{"prod n1 alive"}, "SELECT concat(cluster, ' ', name, if(alive, ' alive', '')) AS line FROM metaflow.agents"))
}

// startAgentOfNode starts the agent of the node n1, which observes connections
// and watches api.
func startAgentOfNode(t *testing.T, s *standalone, api *kubetest.API) {
	t.Helper()
	group, config := filepath.Join(t.TempDir(), "group.yaml"), filepath.Join(t.TempDir(), "agent.yaml")
	for file, text := range map[string]string{
		group:  "inputs:\n  flow: {enabled: true, dump_interval: 1s, report_interval: 10s}\n",
		config: fmt.Sprintf("cluster: prod\nname: n1\nkubernetes: {kubeconfig: %q}\nlog: {format: text}\n", api.Kubeconfig("metaflow")),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustCtl(t, s.at.HTTP, "agent-group-config", "update", "default", "-f", group)
	startAgent(t, t.TempDir(), s.at.GRPC, "--config", config)
}

// exportLate sends flows with the pod's address, by end time.
func exportLate(t *testing.T, s *standalone, connections map[time.Time]uint32) {
	t.Helper()
	group := &agentv1.FlowGroup{NetworkNamespace: 1}
	for end, connection := range connections {
		group.Flows = append(group.Flows, &agentv1.Flow{
			StartTimeUnixNano: uint64(end.Add(-time.Second).UnixNano()), EndTimeUnixNano: uint64(end.UnixNano()),
			LocalAddress: []byte{10, 244, 9, 9}, LocalPort: 40000, PeerAddress: netip.MustParseAddr(podAddress).AsSlice(), PeerPort: 80,
			Role: agentv1.FlowRole_FLOW_ROLE_CLIENT, State: agentv1.FlowState_FLOW_STATE_CLOSED, Connection: uint64(connection), Connections: 1,
		})
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), schema.MetadataAgent, "late")
	resp, err := agentv1.NewFlowServiceClient(newClient(t, s.at.GRPC, 1).conn).ExportFlows(ctx, &agentv1.ExportFlowsRequest{
		AgentId: "late", Cluster: "prod", Node: "n2", Groups: []*agentv1.FlowGroup{group},
	})
	if err != nil || resp.GetPartialSuccess() != nil {
		t.Fatalf("%v, %v", resp, err)
	}
}

// knows returns nil once a server knows the given number of pods or services.
func knows(s *standalone, kind string, want int) func() error {
	return func() error {
		_, body, err := get("http://" + s.at.HTTP + "/metrics")
		if line := fmt.Sprintf("metaflow_resources_objects{kind=%q} %d\n", kind, want); err == nil && !strings.Contains(body, line) {
			err = fmt.Errorf("the server does not know %d %ss", want, kind)
		}
		return err
	}
}

// answers returns nil once a query with one column, line, returns want.
func answers(conn driver.Conn, want []string, question string, args ...any) func() error {
	return func() error {
		var lines []struct {
			Line string `ch:"line"`
		}
		if err := conn.Select(context.Background(), &lines, question, args...); err != nil {
			return err
		}
		var got []string
		for _, l := range lines {
			got = append(got, l.Line)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("%.60s (-want +got):\n%s", question, diff)
		}
		return nil
	}
}

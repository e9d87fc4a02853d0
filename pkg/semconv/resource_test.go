package semconv_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
)

// resourceView is a resolved Resource in comparable form.
type resourceView struct {
	Service, ServiceNamespace, Instance             string
	Cluster, Namespace, Pod, PodUID, Node, Workload string
	IP                                              string
}

func resourceViewOf(r *semconv.Resource) resourceView {
	return resourceView{
		Service: string(r.ServiceName), ServiceNamespace: string(r.ServiceNamespace), Instance: string(r.ServiceInstanceID),
		Cluster: string(r.Cluster), Namespace: string(r.Namespace), Pod: string(r.Pod), PodUID: string(r.PodUID),
		Node: string(r.Node), Workload: string(r.Workload), IP: addressText(r.IP),
	}
}

var resourceStories = map[string]struct {
	attrs pairs
	want  resourceView
}{
	"pod described by the collector": {
		pairs{
			"service.name", "orders", "service.namespace", "shop", "service.instance.id", "i-1", "k8s.cluster.name", "prod", "k8s.cluster.uid", "u-9",
			"k8s.namespace.name", "shop-ns", "k8s.pod.name", "orders-7d4b9c6f5d-x2x7k", "k8s.pod.uid", "p-7", "k8s.node.name", "node-3",
			"k8s.deployment.name", "orders", "k8s.replicaset.name", "orders-7d4b9c6f5d", "k8s.pod.ip", "10.244.1.2", "host.name", "orders-7d4b9c6f5d-x2x7k",
		},
		resourceView{
			Service: "orders", ServiceNamespace: "shop", Instance: "i-1", Cluster: "prod", Namespace: "shop-ns", Pod: "orders-7d4b9c6f5d-x2x7k",
			PodUID: "p-7", Node: "node-3", Workload: "orders", IP: "10.244.1.2",
		},
	},
	"host outside of Kubernetes":                 {pairs{"host.name", "vm-1", "host.ip", `["192.168.1.5"]`}, resourceView{Node: "vm-1", IP: "192.168.1.5"}},
	"host name of a pod is not its node":         {pairs{"host.name", "orders-1", "k8s.pod.name", "orders-1"}, resourceView{Pod: "orders-1"}},
	"cluster known by uid only":                  {pairs{"k8s.cluster.uid", "u-9"}, resourceView{Cluster: "u-9"}},
	"replica set of a deployment":                {pairs{"k8s.replicaset.name", "my-app-7d4b9c6f5d"}, resourceView{Workload: "my-app"}},
	"replica set that somebody named":            {pairs{"k8s.replicaset.name", "my-app-frontend"}, resourceView{Workload: "my-app-frontend"}},
	"replica set whose whole name looks hashed":  {pairs{"k8s.replicaset.name", "7d4b9c6f5d"}, resourceView{Workload: "7d4b9c6f5d"}},
	"stateful set":                               {pairs{"k8s.statefulset.name", "db-7d4b9c6f5d"}, resourceView{Workload: "db-7d4b9c6f5d"}},
	"daemon set":                                 {pairs{"k8s.daemonset.name", "agent"}, resourceView{Workload: "agent"}},
	"cron job before its job":                    {pairs{"k8s.job.name", "backup-28491230", "k8s.cronjob.name", "backup"}, resourceView{Workload: "backup"}},
	"job of a cron job":                          {pairs{"k8s.job.name", "backup-28491230"}, resourceView{Workload: "backup"}},
	"job of its own":                             {pairs{"k8s.job.name", "import-2024"}, resourceView{Workload: "import-2024"}},
	"replication controller":                     {pairs{"k8s.replicationcontroller.name", "web"}, resourceView{Workload: "web"}},
	"pod's address before the sender's":          {pairs{"app.host.ip", "10.0.0.2", "k8s.pod.ip", "10.0.0.1", "host.ip", `["10.0.0.3"]`}, resourceView{IP: "10.0.0.1"}},
	"sender's address before the host's":         {pairs{"host.ip", `["10.0.0.3"]`, "app.host.ip", "10.0.0.2", "net.host.ip", "10.0.0.4"}, resourceView{IP: "10.0.0.2"}},
	"first address of the host that is its own":  {pairs{"host.ip", `["127.0.0.1","::1","fe80::1","169.254.1.1","224.0.0.1","2001:db8::5","10.0.0.3"]`}, resourceView{IP: "2001:db8::5"}},
	"host with no address of its own":            {pairs{"host.ip", `["127.0.0.1"]`, "net.host.ip", "10.0.0.4"}, resourceView{IP: "10.0.0.4"}},
	"loopback address that the pod really has":   {pairs{"k8s.pod.ip", "127.0.1.5"}, resourceView{IP: "127.0.1.5"}},
	"address that is none falls to the next one": {pairs{"k8s.pod.ip", "0.0.0.0", "app.host.ip", "unknown", "host.ip", "10.0.0.3"}, resourceView{IP: "10.0.0.3"}},
	"nothing": {nil, resourceView{}},
	"garbage": {pairs{"host.ip", `["`, "k8s.pod.ip", "[[[", "net.host.ip", "%", "k8s.replicaset.name", "-", "k8s.job.name", "-28491230"}, resourceView{Workload: "-28491230"}},
}

func TestResource(t *testing.T) {
	var r semconv.Resource // shared, so nothing of the previous case may remain
	for name, story := range resourceStories {
		t.Run(name, func(t *testing.T) {
			r.Reset()
			add(story.attrs, r.Add)
			r.Resolve()
			if diff := cmp.Diff(story.want, resourceViewOf(&r)); diff != "" {
				t.Errorf("resolved resource (-want +got):\n%s", diff)
			}
		})
	}
}

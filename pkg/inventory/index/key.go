package index

import (
	"strings"

	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// escaper escapes slashes in a cluster's name, which operators choose. The key parts
// after it contain no slashes in Kubernetes.
var escaper = strings.NewReplacer("%", "%25", "/", "%2F")

// PodKey returns the key of a pod's records in the resources topic.
func PodKey(p *agentv1.Pod) string {
	return schema.KeyPod + escaper.Replace(p.GetCluster()) + "/" + p.GetUid()
}

// ServiceKey returns the key of a service's records in the resources topic.
func ServiceKey(s *agentv1.Service) string {
	return schema.KeyService + escaper.Replace(s.GetCluster()) + "/" + s.GetNamespace() + "/" + s.GetName()
}

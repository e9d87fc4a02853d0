package index

import (
	"bytes"
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// MaxAddresses is how many addresses of a pod are kept, current ones first. A pod has one
// or two at a time, and gets others only when its node restarts.
const MaxAddresses = 16

// MergePod returns the record of a pod after a report. known is the previous record or
// nil. said is the reported pod, with cluster, node and report time filled in. It changes
// neither.
//
//   - A report older than the known record changes nothing.
//   - A known address keeps its start, and continues even if it had been
//     considered lost.
//   - An address that is no longer reported ends with the report, or with the pod.
//   - An address that replaces another one starts with the report.
func MergePod(known, said *agentv1.Pod) *agentv1.Pod {
	if known != nil && known.SeenTimeUnixNano > said.SeenTimeUnixNano {
		return known
	}
	merged := proto.CloneOf(said)
	var lost []*agentv1.PodAddress
	for _, a := range known.GetAddresses() {
		if now := find(merged.Addresses, a.Address); now != nil {
			now.ValidFromUnixNano = a.ValidFromUnixNano
			continue
		}
		a = proto.CloneOf(a)
		if a.ValidToUnixNano == 0 {
			a.ValidToUnixNano = max(a.ValidFromUnixNano, cmp.Or(said.EndTimeUnixNano, said.SeenTimeUnixNano))
		}
		lost = append(lost, a)
	}
	for _, a := range merged.Addresses {
		if len(lost) > 0 && find(known.Addresses, a.Address) == nil {
			a.ValidFromUnixNano = max(a.ValidFromUnixNano, said.SeenTimeUnixNano)
		}
		if said.EndTimeUnixNano != 0 {
			a.ValidToUnixNano = max(a.ValidFromUnixNano, said.EndTimeUnixNano)
		}
	}
	slices.SortStableFunc(lost, func(a, b *agentv1.PodAddress) int { return cmp.Compare(b.ValidToUnixNano, a.ValidToUnixNano) })
	merged.Addresses = append(merged.Addresses, lost...)
	merged.Addresses = merged.Addresses[:min(len(merged.Addresses), MaxAddresses)]
	return merged
}

// EndPod returns the record of a pod that ended at the given time, when no more is known
// about its end.
func EndPod(known *agentv1.Pod, at uint64) *agentv1.Pod {
	ended := proto.CloneOf(known)
	ended.EndTimeUnixNano = at
	for _, a := range ended.Addresses {
		if a.ValidToUnixNano == 0 {
			a.ValidToUnixNano = max(a.ValidFromUnixNano, at)
		}
	}
	return ended
}

// MergeService is MergePod for services, whose addresses last as long as the service.
func MergeService(known, said *agentv1.Service) *agentv1.Service {
	if known != nil && known.SeenTimeUnixNano > said.SeenTimeUnixNano {
		return known
	}
	return said
}

// EndService is EndPod for services.
func EndService(known *agentv1.Service, at uint64) *agentv1.Service {
	ended := proto.CloneOf(known)
	ended.EndTimeUnixNano = at
	return ended
}

func find(list []*agentv1.PodAddress, address []byte) *agentv1.PodAddress {
	for _, a := range list {
		if bytes.Equal(a.Address, address) {
			return a
		}
	}
	return nil
}

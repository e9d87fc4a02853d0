package index

import (
	"bytes"
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// MaxAddresses is how many addresses of a pod are kept, those it has now first. A pod has one or
// two at a time, and gets others only when its node was restarted.
const MaxAddresses = 16

// MergePod returns the record of a pod after a report of it: known is the record before, nil
// when there was none, and said is what the report says, with the cluster, the node and the time
// of the report filled in. It changes neither.
//
//   - A report that is older than what is known changes nothing.
//   - An address that was known keeps its beginning, and goes on if it had been taken for lost.
//   - An address that is reported no more ends with the report, or with the pod.
//   - An address that takes the place of another one begins with the report.
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

// EndPod returns the record of a pod that ended at a time, when all that is known of that is that it
// is gone.
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

// MergeService is MergePod for services, which have their addresses for as long as they
// are there.
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

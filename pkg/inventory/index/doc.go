// Package index knows who held an address at a time: the pod, the service, or the node.
//
// An [Index] begins empty and is given the records of the topic metaflow.resources in
// the order of their offsets. It answers for the past as well as for now, because spans and flows
// may come hours late, and Kubernetes gives the addresses of pods that ended to others.
// [MergePod] and [MergeService] make the record to write when an agent reports a pod or
// a service again: a record says everything by itself, so compaction loses nothing.
//
// Who held an address at a time is decided so:
//   - A pod comes before a service, and a service before a node.
//   - Of several pods, or services, whoever got it last before that time. So old ones whose end
//     nobody saw lose to new ones.
//   - When nobody held it exactly then, whoever held it within [Slack]: clocks differ, and
//     Kubernetes tells times in seconds.
//   - Pods in the network of their node share its addresses and hold none. An
//     address that several living nodes have, such as that of a bridge for
//     containers, is nobody's.
//
// The package does no I/O and reads no clock. An Index belongs to one goroutine at a time,
// except that its methods which only ask may run at the same time as each other.
package index

// Package index knows which pod, service or node held an address at a given time.
//
// An [Index] begins empty and receives the records of the topic metaflow.resources in
// offset order. It answers for the past as well as the present, because spans and flows
// may arrive hours late and Kubernetes reuses the addresses of ended pods. [MergePod] and
// [MergeService] build the record to write when an agent reports a pod or service again:
// each record is complete in itself, so compaction loses nothing.
//
// The holder of an address at a given time is chosen as follows:
//   - A pod takes precedence over a service, and a service over a node.
//   - Of several pods, or services, the one that got the address last before
//     that time. So old ones whose end was not observed lose to new ones.
//   - If none held it exactly then, the one that held it within five seconds: clocks
//     differ, and Kubernetes reports times in seconds.
//   - Pods in their node's network share its addresses and hold none. An address
//     of several live nodes, such as that of a container bridge, has no holder.
//
// The package does no I/O and reads no clock. An Index is not safe for concurrent use,
// except that its read-only methods may run concurrently with each other.
package index

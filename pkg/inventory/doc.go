// Package inventory is the part of a server that knows the pods and services of Kubernetes.
//
// # The way of a report
//
//  1. An agent's report comes to any replica (pkg/rpc/agentgrpc). What is new in it, compared with what
//     is known, becomes records of the topic metaflow.resources: one a pod or service, which says
//     everything about it, so that the topic can be compacted (pkg/inventory/index).
//  2. The report is answered when Kafka has acknowledged them.
//  3. Every replica follows the topic ([Resources.Run]) and knows who held an address
//     at a time ([Resources.Resolve]).
//  4. One of them, by a consumer group, writes the tables pods, services and agents ([Tables]).
//
// Pods that nobody reports any more, because their node is gone, end with the last report of
// them. What ended is forgotten after Config.ForgetAfter, but not in the tables, which have a
// retention of their own.
//
// # Invariants
//
//   - A report that was acknowledged is in the topic for good.
//   - Reports may come twice, late, and at several replicas: the newer one counts.
//   - What is kept is bounded: Config.MaxObjects.
//
// Lock order: Resources.mu is the only lock. No Kafka request is made while it is held.
package inventory

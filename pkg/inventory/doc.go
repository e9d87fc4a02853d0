// Package inventory tracks the pods and services of Kubernetes.
//
// # The path of a report
//
//  1. An agent's report reaches any replica (pkg/rpc). What is new in
//     it becomes records of the topic metaflow.resources: one per pod or
//     service, each complete in itself, so that the topic can be compacted
//     (pkg/inventory/index).
//  2. The report is answered when Kafka has acknowledged the records.
//  3. Every replica follows the topic ([Resources.Run]) and knows who held an
//     address at a given time ([Resources.Resolve]).
//  4. One replica, chosen by a consumer group, writes the tables pods, services
//     and agents ([Tables]).
//
// Pods that are no longer reported, because their node is gone, end with their last
// report. Ended objects are forgotten after Config.ForgetAfter; the tables have their own
// retention.
//
// # Invariants
//
//   - An acknowledged report is in the topic for good.
//   - Reports may arrive twice, late, and at several replicas: the newer counts.
//   - Config.MaxObjects bounds the number of known objects.
//
// Lock order: Resources.mu is the only lock. It is not held during Kafka requests.
package inventory

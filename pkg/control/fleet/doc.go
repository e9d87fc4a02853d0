// Package fleet computes the state of agents and their groups from two logs.
//
// A [State] begins empty and receives the records of both topics in offset order.
// [State.Apply] applies the commands of metaflow.control. The groups and the outcome of
// each command depend on the earlier commands and on nothing else, so replicas that have
// read equally far agree, and a restarted one reaches the same state. [State.Observe]
// applies the agent records of metaflow.resources.
//
// Invariants:
//   - A command counts once: if its offset was already applied, or its request id
//     is among the last [RememberedRequests], it changes nothing.
//   - The group named "default" always exists. Names and ids of groups are
//     unique, and no name looks like an id.
//   - A group's revision only grows, even across deletion and recreation, and
//     changes whenever the configuration does.
//   - An agent belongs to the group that it names at the time of the query.
//     Deleting a group does not move its agents.
//
// The package does no I/O and reads no clock. A State is not safe for concurrent use.
package fleet

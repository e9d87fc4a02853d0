// Package fleet is what the replicas of the server know of agents and of the groups
// they belong to, as a function of two logs.
//
// A [State] begins empty and is given the records of both topics in the order of their
// offsets. [State.Apply] takes the commands of metaflow.control: what becomes of the groups and
// the outcome of each command depend on the commands before it and on nothing else, so
// all replicas that have read equally far agree, and one that starts anew comes
// to the same state. [State.Observe] takes what metaflow.resources says of agents.
//
// Invariants:
//   - A command counts once: one whose offset was applied already, or whose request id is
//     among the last [RememberedRequests], changes nothing.
//   - The group named "default" always exists. Names and ids of groups are unique, and
//     no name looks like an id.
//   - A group's revision only grows, over its deletion and creation too, and it is different
//     whenever the configuration is.
//   - An agent belongs to the group that it names, at the moment of the question.
//     Deleting a group moves nobody.
//
// The package does no I/O and reads no clock. A State belongs to one goroutine at a time.
package fleet

// Package control manages the agents and their configuration.
//
// Every replica reads two Kafka topics from their beginning and keeps the resulting state
// in memory (pkg/control/fleet): metaflow.control, the operators' changes to agent
// groups, and metaflow.resources, the last status of every agent. It stores nothing else,
// so a replica needs no disk and any replica can answer any request.
//
// # The path of a change
//
//  1. An operator's request reaches any replica through pkg/control/api. The
//     replica reads the log up to its end at that time and checks the request
//     against the resulting state.
//  2. The change is written to the log as a command, acknowledged by all in-sync
//     replicas of Kafka.
//  3. Every replica reads the command, computes the same outcome and wakes the
//     streams of the agents whose configuration has changed (pkg/rpc).
//  4. The replica that received the request reads its own command back and
//     responds with the outcome.
//
// Two changes at two replicas are two commands in one order, so both survive.
//
// # The path of a heartbeat
//
// An agent's heartbeat becomes a record of metaflow.resources: at once if something
// changed, otherwise about every ten seconds. Replicas know agents, including those
// connected to themselves, from these records only.
//
// # Invariants
//
//   - A change that a Service method acknowledged is in the log for good. After
//     an Unavailable error the change may or may not have been made.
//   - Reads include every change that any replica acknowledged before they began.
//     While Kafka is unreachable they are served from memory, and agents are
//     shown as of the last read.
//   - Of two agents that claim one id, the one that started later is refused.
//   - The number of pending records is bounded by one per agent.
//
// Lock order: Control.mu is the only lock. It is not held during Kafka requests.
package control

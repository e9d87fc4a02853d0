// Package control is the part of a server that knows the agents and keeps them configured.
//
// Every replica reads two topics of Kafka from their beginning and holds what they amount to in
// memory (pkg/control/fleet): metaflow.control, the changes that operators made to agent groups, and
// metaflow.resources, what every agent last said of itself. Nothing else is kept, so
// a replica needs no disk, and any replica can answer anything.
//
// # The way of a change
//
//  1. An operator's request comes to any replica through pkg/control/api. It is checked against what
//     is known, after reading up to the end that the log had when it came.
//  2. It goes into the log as a command, acknowledged by all in-sync replicas of Kafka.
//  3. Every replica reads it there, decides alike what becomes of it, and wakes the streams of
//     the agents whose configuration is now another one (pkg/rpc/agentgrpc).
//  4. The replica that was asked answers when it has read its own command, with the outcome.
//
// Two changes at two replicas are two commands in one order, so both survive.
//
// # The way of a heartbeat
//
// What an agent says on its stream becomes a record of metaflow.resources: at once when something is
// different from before, else every ten seconds or so. Replicas know agents by
// these records only, their own agents too.
//
// # Invariants
//
//   - What a Service method acknowledged is in the log for good. After an Unavailable error a change
//     may have been made or not.
//   - Reads see every change that was acknowledged before they began, by whichever replica.
//     While Kafka cannot be reached they answer from memory, and agents are shown as they
//     were when it was last read.
//   - Of two agents that claim one id, the one that started later is refused.
//   - What waits to be written is bounded: one record an agent.
//
// Lock order: Control.mu is the only lock. No Kafka request is made while it is held.
package control

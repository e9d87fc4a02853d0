package main

import (
	"context"
	"math/rand/v2"
	"time"
)

// kind is a kind of fault.
type kind struct {
	name string
	// plan draws one fault of the kind, or returns false where the site cannot have it.
	plan func(*site, *rand.Rand) (fault, bool)
	// alone means that no other fault may be under way.
	alone bool
}

// fault is one fault, as it was drawn.
type fault struct {
	kind string
	what string
	// takes names what no other fault may have at the same time.
	takes []string
	// run brings the fault about and takes it back. It returns when nothing is left of it
	// but what the programs have to mend. ctx bounds it generously.
	run func(ctx context.Context) error
}

// kinds is every kind of fault.
var kinds = []kind{
	{name: "kill -9 server", plan: planKillServer},
	{name: "kill -9 agent", plan: planKillAgent},
	{name: "kill -9 broker", plan: planKillBroker},
	{name: "kill -9 ClickHouse", plan: planKillStore},
	{name: "server stopped", plan: planStopServer},
	{name: "agent stopped", plan: planStopAgent},
	{name: "broker stopped", plan: planStopBroker},
	{name: "ClickHouse stopped", plan: planStopStore},
	{name: "killed at a step", plan: planKillAtStep},
	{name: "two owners", plan: planTwoOwners},
	{name: "connection cut", plan: planCut},
	{name: "connections refused", plan: planRefuse},
	{name: "link hangs", plan: planHang},
	{name: "ClickHouse slow", plan: planSlowStore},
	{name: "too many parts", plan: planTooManyParts},
	{name: "memory limit", plan: planMemoryLimit},
	{name: "table read-only", plan: planReadOnly},
	{name: "table away", plan: planTableAway},
	{name: "view fails", plan: planViewFails},
	{name: "rebalance", plan: planRebalance},
	{name: "SIGTERM", plan: planTerminate},
	{name: "offsets deleted", plan: planOffsetsDeleted},
	{name: "offsets reset", plan: planOffsetsReset},
	{name: "topic grown", plan: planTopicGrown, alone: true},
	{name: "topic made anew", plan: planTopicAnew, alone: true},
	{name: "another leader", plan: planAnotherLeader},
	{name: "log cut off", plan: planLogCutOff},
	{name: "spool disk full", plan: planSpoolFull},
	{name: "broker disk full", plan: planBrokerFull},
	{name: "clock jumps", plan: planClock},
}

// between draws a duration.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// pauseFor draws for how long a program is stopped: for a moment, for longer than every
// timeout and session here, or for longer than a writer repeats an INSERT under its token, ClickHouse
// waits for rows, and ClickHouse remembers tokens.
func (s *site) pauseFor(r *rand.Rand) time.Duration {
	switch n := r.IntN(20); {
	case n < 8:
		return between(r, 100*time.Millisecond, 3*time.Second)
	case n < 18 || s.o.short:
		return between(r, 7*time.Second, 12*time.Second)
	default:
		return between(r, 42*time.Second, 50*time.Second)
	}
}

// downFor draws for how long a killed program stays down.
func downFor(r *rand.Rand) time.Duration {
	if r.IntN(3) > 0 {
		return between(r, 0, 2*time.Second)
	}
	return between(r, 2*time.Second, 9*time.Second)
}

// pick draws one of several.
func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

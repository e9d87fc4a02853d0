package control

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// replayTimeout is how long an agent waits for a replica that has just started.
	replayTimeout = 5 * time.Second
	// releaseTimeout is how long a joining agent waits for the end of its former stream,
	// which arrives through Kafka if that stream was at another replica.
	releaseTimeout = 3 * time.Second
	// statusInterval is how often an unchanged agent status is written. It is a little
	// less than the ten seconds between heartbeats, which vary.
	statusInterval = 8 * time.Second
)

// session is an agent with a stream to this replica. Control.mu guards its mutable
// fields.
type session struct {
	control      *Control
	registration *agentv1.Registration
	peer         string
	binding      []byte        // record of the id's binding; nil without a Guard
	changed      chan struct{} // capacity 1
	ended        chan struct{}
	// mayJoin returns nil while the credentials of the stream are good for its group.
	mayJoin func() error

	err          error // why the session was ended
	group        string
	sentRevision uint64               // revision of group that the stream was last woken for or received
	status       *agentv1.AgentStatus // newest; replaced, never modified
	seen         time.Time            // time of the newest heartbeat or of the registration
	written      time.Time            // when a status was last enqueued
	rival        *agentv1.AgentStatus // another agent with this id, not known to be gone
	since        time.Time            // when the rival was first seen
}

// Join implements rpc.Controller.
func (c *Control) Join(ctx context.Context, r *agentv1.Registration, peer string) (rpc.Session, error) {
	if err := c.awaitReplay(ctx); err != nil {
		return nil, err
	}
	release, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	var s *session
	var err error
	var holder *agentv1.AgentStatus
	waited := c.await(release, func() bool {
		if holder = c.holder(r); holder == nil {
			s, err = c.admit(ctx, r, peer)
		}
		return holder == nil
	})
	switch {
	case ctx.Err() != nil:
		if s != nil {
			s.Leave()
		}
		return nil, ctx.Err()
	case waited != nil:
		c.mu.Lock()
		first := c.noteConflict(r, peer)
		c.mu.Unlock()
		level := slog.LevelDebug
		if first {
			level = slog.LevelWarn
		}
		c.log.Log(ctx, level, "agent refused, its id belongs to another agent", slog.String("agent_id", r.AgentId),
			slog.String("peer", peer), slog.String("other_peer", holder.Peer), slog.String("other_replica", holder.Replica))
		return nil, inUse(holder)
	case err != nil:
		return nil, err
	}
	return s, nil
}

// Check implements rpc.Controller.
func (c *Control) Check(ctx context.Context, r *agentv1.Registration) (*agentv1.CheckResponse, error) {
	if err := c.awaitReplay(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mayJoin(ctx, r); err != nil {
		return nil, err
	}
	group, _ := c.state.GroupOf(r)
	return &agentv1.CheckResponse{GroupId: group.ID, GroupName: group.Name}, nil
}

// awaitReplay waits until the agent groups and agents are known.
func (c *Control) awaitReplay(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, replayTimeout)
	defer cancel()
	if c.await(ctx, func() bool { return c.commands.reached && c.resources.reached }) == nil {
		return nil
	}
	if err := c.Ready(ctx); err != nil {
		return fmt.Errorf("this server has not read the agent groups yet: %w", err)
	}
	return nil
}

// holder returns the live agent that has the id of r but is not r, or nil. The caller
// holds mu.
func (c *Control) holder(r *agentv1.Registration) *agentv1.AgentStatus {
	now := c.opts.Now()
	if s := c.sessions[r.AgentId]; s != nil {
		if s.registration.InstanceId != r.InstanceId && now.Sub(s.seen) <= fleet.LostAfter {
			return s.status
		}
		return nil
	}
	status := c.state.Status(r.AgentId)
	// A stream to this replica without a session has ended, possibly with the previous
	// process.
	if !fleet.Alive(status, now) || status.Replica == c.opts.Replica || status.Registration.InstanceId == r.InstanceId {
		return nil
	}
	return status
}

// admit creates the session of r and ends the one it replaces. The caller holds mu.
func (c *Control) admit(ctx context.Context, r *agentv1.Registration, peer string) (*session, error) {
	id := r.AgentId
	if err := c.mayJoin(ctx, r); err != nil {
		return nil, err
	}
	known := c.state.Status(id) != nil || c.sessions[id] != nil
	// An agent whose first record is in flight counts in the sessions.
	if !known && max(c.state.AgentCount(), len(c.sessions)) >= c.cfg.MaxAgents {
		return nil, fault.As(fault.Overload, fmt.Errorf("there are already %d agents, which is the limit (control.max_agents)", c.cfg.MaxAgents))
	}
	if !known {
		if err := c.admitNew(peer); err != nil {
			return nil, err
		}
	}
	binding, err := c.bind(ctx, id)
	if err != nil {
		return nil, err
	}
	if former := c.sessions[id]; former != nil {
		c.end(former, errors.New("the agent has opened another stream"))
	}
	s := &session{
		control: c, registration: r, peer: peer, binding: binding,
		changed: make(chan struct{}, 1), ended: make(chan struct{}),
		mayJoin: func() error { return c.mayJoin(ctx, r) },
	}
	c.sessions[id] = s
	s.updateStatus(nil)
	s.write()
	c.log.Debug("agent connected", slog.String("agent_id", id), slog.String("name", r.Name), slog.String("peer", peer))
	return s, nil
}

// mayJoin returns nil if the caller in ctx may join the group that r names. The caller
// holds mu.
func (c *Control) mayJoin(ctx context.Context, r *agentv1.Registration) error {
	if c.opts.Guard == nil {
		return nil
	}
	names := []string{cmp.Or(r.Group, fleet.DefaultGroupName)}
	if group, ok := c.state.GroupOf(r); ok {
		names = append(names, group.ID, group.Name)
	}
	return c.opts.Guard.MayJoin(ctx, r.AgentId, names...)
}

// Recheck ends the streams of agents whose token or certificate is no longer good for
// their group. Call it after the Guard's tokens have changed.
func (c *Control) Recheck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.sessions {
		if err := s.mayJoin(); err != nil {
			c.log.Warn("agent disconnected, its token is not accepted any more", slog.String("agent_id", id), slog.String("peer", s.peer))
			c.end(s, err)
			c.leave(s)
		}
	}
}

// bind binds the id of an admitted agent to its credential and enqueues the record. The
// caller holds mu.
func (c *Control) bind(ctx context.Context, id string) (binding []byte, err error) {
	if c.opts.Guard == nil {
		return nil, nil
	}
	binding, news, err := c.opts.Guard.Bind(ctx, id, c.opts.Now())
	if news {
		c.bindings[id] = binding
		c.signalWriter()
	}
	return binding, err
}

// deleted enqueues the binding again at once, so that nobody takes the id of a connected
// agent. The agent itself is written again with its next heartbeat. The caller holds mu.
func (s *session) deleted() {
	s.written, s.rival = time.Time{}, nil
	if s.binding != nil {
		s.control.bindings[s.registration.AgentId] = s.binding
		s.control.signalWriter()
	}
}

// forgetAgents handles a recreated topic. The caller holds mu.
func (c *Control) forgetAgents() {
	c.state.ForgetAgents()
	for _, s := range c.sessions {
		s.deleted()
	}
}

// end ends a session that has not left. The caller holds mu.
func (c *Control) end(s *session, err error) {
	s.err = err
	close(s.ended)
	delete(c.sessions, s.registration.AgentId)
}

// observed compares an agent's record with its session here. The caller holds mu.
func (c *Control) observed(id string, status *agentv1.AgentStatus) {
	s := c.sessions[id]
	switch {
	case s == nil:
	case status == nil:
		s.deleted()
	case status.Replica == "": // another stream of this id ended
		if s.rival.GetRegistration().GetInstanceId() == status.Registration.InstanceId {
			s.rival = nil
		}
		s.write() // so that the last record of the id is its holder's
	case status.Registration.InstanceId == s.registration.InstanceId:
	case status.Replica == c.opts.Replica || !fleet.Alive(status, c.opts.Now()):
	case s.rival == nil:
		s.rival, s.since = status, c.opts.Now()
	}
}

// settleInterval is how often rivals are checked.
const settleInterval = 500 * time.Millisecond

// settleRivals ends sessions whose id belongs to an agent at another replica, until ctx
// ends.
//
// Two agents may join with one id at two replicas before either replica has read the
// other's record. Then both replicas read both records and decide alike. But the rival
// may also be an earlier start of the same agent whose end is still in flight through
// Kafka. So the decision waits for as long as Join waits for that end.
func (c *Control) settleRivals(ctx context.Context) error {
	retry.Every(ctx, settleInterval, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		now := c.opts.Now()
		for _, s := range c.sessions {
			if s.rival != nil && now.Sub(s.since) >= releaseTimeout {
				c.settle(s, now)
			}
		}
	})
	return nil
}

// settle decides between s and its rival. The caller holds mu.
func (c *Control) settle(s *session, now time.Time) {
	rival := s.rival
	s.rival = nil
	if startedBefore(s.registration, rival.Registration) && now.Sub(s.seen) <= fleet.LostAfter {
		s.write()
		return
	}
	id := s.registration.AgentId
	delete(c.statuses, id)
	c.end(s, inUse(rival))
	c.noteConflict(s.registration, s.peer)
	c.broadcast()
	c.log.Warn("agent disconnected, its id belongs to another agent", slog.String("agent_id", id),
		slog.String("peer", s.peer), slog.String("other_peer", rival.Peer), slog.String("other_replica", rival.Replica))
}

// inUse returns the error for an agent whose id belongs to holder.
func inUse(holder *agentv1.AgentStatus) error {
	return fault.As(fault.Fenced, fmt.Errorf(
		"the agent id %q is in use by another running agent, %q at %s: give this one its own id",
		holder.Registration.AgentId, holder.Registration.Name, holder.Peer))
}

func startedBefore(a, b *agentv1.Registration) bool {
	return cmp.Or(cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano), cmp.Compare(a.InstanceId, b.InstanceId)) < 0
}

// Heartbeat implements rpc.Session.
func (s *session) Heartbeat(h *agentv1.Heartbeat) time.Time {
	c := s.control
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[s.registration.AgentId] != s {
		return c.opts.Now()
	}
	last := s.status.Heartbeat
	s.updateStatus(h)
	news := last == nil || last.GroupId != h.GroupId || last.Revision != h.Revision || !slices.Equal(last.Exceptions, h.Exceptions)
	if news || s.seen.Sub(s.written) >= statusInterval {
		s.write()
	}
	return s.seen
}

// updateStatus replaces the status, as of now. The caller holds mu.
func (s *session) updateStatus(h *agentv1.Heartbeat) {
	c := s.control
	s.seen = c.opts.Now()
	s.status = &agentv1.AgentStatus{
		Registration: s.registration, Heartbeat: h, SeenTimeUnixNano: uint64(s.seen.UnixNano()),
		Peer: s.peer, Replica: c.opts.Replica,
	}
	if group, ok := c.state.GroupOf(s.registration); ok {
		s.status.GroupId = group.ID
	}
}

// write enqueues the status. The caller holds mu.
func (s *session) write() {
	s.written = s.seen
	s.control.enqueue(s.status)
}

// Configuration implements rpc.Session.
func (s *session) Configuration() *agentv1.Configuration {
	c := s.control
	c.mu.Lock()
	defer c.mu.Unlock()
	group, ok := c.state.GroupOf(s.registration)
	if !ok || !c.commands.reached {
		return nil
	}
	s.group, s.sentRevision = group.ID, group.Revision
	built := c.built[group.ID]
	if built == nil || built.Revision != group.Revision || built.GroupName != group.Name {
		built = &agentv1.Configuration{
			GroupId: group.ID, GroupName: group.Name, Revision: group.Revision, Yaml: string(group.Document.YAML("")),
		}
		c.built[group.ID] = built
	}
	return built
}

// wake signals Changed if Configuration would return something else. The caller holds mu.
func (s *session) wake() {
	group, ok := s.control.state.GroupOf(s.registration)
	if !ok || group.ID == s.group && group.Revision == s.sentRevision {
		return
	}
	s.group, s.sentRevision = group.ID, group.Revision
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Changed implements rpc.Session.
func (s *session) Changed() <-chan struct{} { return s.changed }

// Ended implements rpc.Session.
func (s *session) Ended() <-chan struct{} { return s.ended }

// Err implements rpc.Session.
func (s *session) Err() error {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	return s.err
}

// Leave implements rpc.Session.
func (s *session) Leave() {
	c, id := s.control, s.registration.AgentId
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[id] != s {
		return // another session has the id now
	}
	delete(c.sessions, id)
	c.log.Debug("agent disconnected", slog.String("agent_id", id), slog.String("name", s.registration.Name), slog.String("peer", s.peer))
	c.leave(s)
}

// leave enqueues that the agent of a removed session is gone, unless it has connected to
// another replica. The caller holds mu.
func (c *Control) leave(s *session) {
	c.broadcast() // a waiting Join may take the id
	known := c.state.Status(s.registration.AgentId)
	if fleet.Alive(known, c.opts.Now()) && known.Replica != c.opts.Replica &&
		known.Registration.InstanceId == s.registration.InstanceId && known.SeenTimeUnixNano > s.status.SeenTimeUnixNano {
		return // it has connected to another replica since
	}
	gone := &agentv1.AgentStatus{
		Registration: s.registration, Heartbeat: s.status.Heartbeat, SeenTimeUnixNano: s.status.SeenTimeUnixNano,
		GroupId: s.status.GroupId, Peer: s.peer,
	}
	c.enqueue(gone)
}

func isAgent(key []byte) bool { return bytes.HasPrefix(key, []byte(schema.KeyAgent)) }

package control

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// limits are those of a group at a revision.
type limits struct {
	revision uint64
	agentconfig.Limits
}

// Follow is Run for a server without the role control, which only asks for AgentLimits: it
// follows both topics until ctx ends and writes nothing. Both topics must exist.
func (c *Control) Follow(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.follow(ctx, &c.commands, c.applyCommands, c.state.ForgetCommands) })
	g.Go(func() error { return c.follow(ctx, &c.resources, c.applyResources, c.forgetAgents) })
	return g.Wait()
}

// AgentLimits returns the group of an agent that is registered at any replica, and the
// limits in the group's configuration. ok is false if there is no such agent or group. It
// never blocks on I/O.
func (c *Control) AgentLimits(id string) (groupID, groupName string, of agentconfig.Limits, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var r *agentv1.Registration
	if s := c.sessions[id]; s != nil {
		r = s.registration
	} else if r = c.state.Status(id).GetRegistration(); r == nil {
		return "", "", of, false
	}
	group, ok := c.state.GroupOf(r)
	if !ok {
		return "", "", of, false
	}
	known, cached := c.limits[group.ID]
	if !cached || known.revision != group.Revision {
		known = limits{group.Revision, group.Document.Config().Limits}
		c.limits[group.ID] = known
	}
	return group.ID, group.Name, known.Limits, true
}

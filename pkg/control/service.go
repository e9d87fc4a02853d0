package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

var _ api.Service = (*Control)(nil)

const (
	// readTimeout bounds how long a read waits for Kafka before it is served from memory.
	readTimeout = 3 * time.Second
	// changeTimeout is less than the timeout in pkg/control/api, so that the cause
	// reaches the operator.
	changeTimeout = 12 * time.Second
)

// sync returns nil when everything has been read that was in the topics of ps at the time
// of the call.
func (c *Control) sync(ctx context.Context, ps ...*position) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, errors.New("kafka could not be read in time"))
	defer cancel()
	for _, p := range ps {
		_, end, err := c.opts.Log.Bounds(ctx, p.topic, 0)
		if err != nil {
			return err
		}
		if err := c.await(ctx, func() bool { return p.next >= end }); err != nil {
			return fmt.Errorf("read %s: %w", p.topic, err)
		}
	}
	return nil
}

// refresh waits until memory has caught up with the topics of ps. If Kafka is
// unreachable, memory that was complete once is good enough.
func (c *Control) refresh(ctx context.Context, ps ...*position) error {
	err := c.sync(ctx, ps...)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range ps {
		if p.unread() != nil {
			return api.Unavailable("this server has not read %s yet: %v", p.topic, cmp.Or(p.err, err))
		}
	}
	c.metrics.fromMemory.Inc()
	c.log.Warn("kafka is unreachable, serving from memory", slog.Any("error", err))
	return nil
}

// Agents implements api.Service.
func (c *Control) Agents(ctx context.Context) ([]api.Agent, error) {
	if err := c.refresh(ctx, &c.commands, &c.resources); err != nil {
		return nil, err
	}
	c.mu.Lock()
	agents := c.state.Agents(c.moment())
	c.addConflicts(agents)
	c.mu.Unlock()
	list := make([]api.Agent, 0, len(agents))
	for _, a := range agents {
		list = append(list, view(a))
	}
	return list, nil
}

// Agent implements api.Service.
func (c *Control) Agent(ctx context.Context, idOrName string) (api.Agent, error) {
	if err := c.refresh(ctx, &c.commands, &c.resources); err != nil {
		return api.Agent{}, err
	}
	a, err := c.find(idOrName)
	if err != nil {
		return api.Agent{}, err
	}
	return view(a), nil
}

func (c *Control) find(idOrName string) (fleet.Agent, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.state.Find(idOrName, c.moment())
	c.addConflicts(found)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return fleet.Agent{}, api.NotFound("there is no agent %q", idOrName)
	default:
		return fleet.Agent{}, api.Conflict("%d agents are named %q: give the id of one, such as %s", len(found), idOrName, found[0].ID)
	}
}

// DeleteAgent implements api.Service.
func (c *Control) DeleteAgent(ctx context.Context, idOrName string) error {
	if err := c.sync(ctx, &c.resources); err != nil {
		return notChanged(err)
	}
	a, err := c.find(idOrName)
	if err != nil {
		return err
	}
	if connected(a) {
		return api.Conflict("agent %s is connected to %s and would come back: stop it first; a stopped agent is known as such within a minute", a.ID, a.Status.Replica)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := c.tombstones(ctx, a.ID); err != nil {
		return outcomeUnknown(err)
	}
	if err := c.sync(ctx, &c.resources); err != nil {
		return unconfirmed(err)
	}
	return nil
}

// connected reports whether a has a stream to some replica, or had one less than a minute ago
// when the replica died.
func connected(a fleet.Agent) bool { return a.Status.Replica != "" && a.Condition != fleet.Lost }

func view(a fleet.Agent) api.Agent {
	r, beat := a.Status.Registration, a.Status.Heartbeat
	v := api.Agent{
		ID: a.ID, Name: r.Name, Host: r.Host, Addresses: append([]string{}, r.Addresses...), Version: r.Version, Cluster: r.Cluster,
		Group: r.Group, State: stateNames[a.Condition], Exceptions: append([]string{}, a.Exceptions...), Seen: a.Seen, ClockOffset: a.ClockOffset,
		Revision: beat.GetRevision(), Peer: a.Status.Peer, Replica: a.Status.Replica,
	}
	if r.StartTimeUnixNano != 0 {
		v.Started = time.Unix(0, int64(r.StartTimeUnixNano)).UTC()
	}
	if a.Group != nil {
		v.Group, v.GroupID, v.GroupRevision = a.Group.Name, a.Group.ID, a.Group.Revision
	}
	return v
}

// Groups implements api.Service.
func (c *Control) Groups(ctx context.Context) ([]api.Group, error) {
	if err := c.refresh(ctx, &c.commands, &c.resources); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	members := c.state.Members()
	groups := c.state.Groups()
	list := make([]api.Group, 0, len(groups))
	for _, g := range groups {
		list = append(list, api.Group{ID: g.ID, Name: g.Name, Agents: members[g.ID], Revision: g.Revision, Created: g.Created})
	}
	return list, nil
}

// CreateGroup implements api.Service.
func (c *Control) CreateGroup(ctx context.Context, name, id string) (api.Group, error) {
	if err := c.sync(ctx, &c.commands); err != nil {
		return api.Group{}, notChanged(err)
	}
	id = cmp.Or(id, newGroupID())
	o, err := c.change(ctx, &agentv1.Command{Change: &agentv1.Command_CreateGroup{
		CreateGroup: &agentv1.CreateGroup{GroupId: id, Name: name},
	}}, false)
	if err != nil {
		return api.Group{}, err
	}
	g := o.Group
	return api.Group{ID: g.ID, Name: g.Name, Revision: g.Revision, Created: g.Created}, nil
}

// newGroupID returns a random id out of 36^10, so collisions do not occur.
func newGroupID() string {
	id := []byte("g-")
	random := make([]byte, 1)
	for len(id) < len(fleet.DefaultGroupID) {
		_, _ = rand.Read(random) // never fails
		if n := int(random[0]); n < 256/len(fleet.IDAlphabet)*len(fleet.IDAlphabet) {
			id = append(id, fleet.IDAlphabet[n%len(fleet.IDAlphabet)])
		}
	}
	return string(id)
}

// DeleteGroup implements api.Service.
func (c *Control) DeleteGroup(ctx context.Context, idOrName string) error {
	if err := c.sync(ctx, &c.commands); err != nil {
		return notChanged(err)
	}
	g, err := c.group(idOrName)
	if err != nil {
		return err
	}
	_, err = c.change(ctx, &agentv1.Command{Change: &agentv1.Command_DeleteGroup{DeleteGroup: &agentv1.DeleteGroup{GroupId: g.ID}}}, false)
	return err
}

func (c *Control) group(idOrName string) (fleet.Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g, ok := c.state.Group(idOrName); ok {
		return g, nil
	}
	return fleet.Group{}, api.NotFound("there is no agent group %q", idOrName)
}

// Configurations implements api.Service.
func (c *Control) Configurations(ctx context.Context) ([]api.Configuration, error) {
	if err := c.refresh(ctx, &c.commands); err != nil {
		return nil, err
	}
	c.mu.Lock()
	groups := c.state.Groups()
	c.mu.Unlock()
	list := make([]api.Configuration, 0, len(groups))
	for _, g := range groups {
		list = append(list, configuration(g))
	}
	return list, nil
}

// Configuration implements api.Service.
func (c *Control) Configuration(ctx context.Context, group string) (api.Configuration, error) {
	if err := c.refresh(ctx, &c.commands); err != nil {
		return api.Configuration{}, err
	}
	g, err := c.group(group)
	if err != nil {
		return api.Configuration{}, err
	}
	return configuration(g), nil
}

func configuration(g fleet.Group) api.Configuration {
	return api.Configuration{GroupID: g.ID, GroupName: g.Name, Revision: g.Revision, YAML: string(g.Document.YAML(g.ID))}
}

// UpdateConfiguration implements api.Service.
func (c *Control) UpdateConfiguration(ctx context.Context, group string, text []byte, opts api.UpdateOptions) (api.Update, error) {
	document, named, err := agentconfig.Parse(text)
	if err != nil {
		return api.Update{}, api.Invalid(err)
	}
	sync := c.sync
	if opts.DryRun {
		sync = c.refresh
	}
	if err := sync(ctx, &c.commands); err != nil {
		return api.Update{}, notChanged(err)
	}
	g, err := c.group(cmp.Or(group, named))
	if err != nil {
		return api.Update{}, err
	}
	if named != "" && named != g.ID && named != g.Name {
		return api.Update{}, api.Invalid(&agentconfig.Error{Problems: []agentconfig.Problem{{
			Key: "agent_group_id", Text: fmt.Sprintf("the text is for the agent group %q, but the request is for %q (%s)", named, g.Name, g.ID),
		}}})
	}
	return c.configure(ctx, &agentv1.UpdateConfiguration{
		GroupId: g.ID, Yaml: string(document.YAML("")), Replace: opts.Replace, Create: opts.Create,
	}, opts.DryRun)
}

// DeleteConfiguration implements api.Service.
func (c *Control) DeleteConfiguration(ctx context.Context, group string) (api.Update, error) {
	if err := c.sync(ctx, &c.commands); err != nil {
		return api.Update{}, notChanged(err)
	}
	g, err := c.group(group)
	if err != nil {
		return api.Update{}, err
	}
	return c.configure(ctx, &agentv1.UpdateConfiguration{GroupId: g.ID, Replace: true}, false)
}

func (c *Control) configure(ctx context.Context, u *agentv1.UpdateConfiguration, dryRun bool) (api.Update, error) {
	command := &agentv1.Command{Change: &agentv1.Command_UpdateConfiguration{UpdateConfiguration: u}}
	o, err := c.change(ctx, command, dryRun)
	if err != nil {
		return api.Update{}, err
	}
	return api.Update{
		GroupID: o.Group.ID, GroupName: o.Group.Name, Revision: o.Group.Revision,
		Changes: agentconfig.Diff(o.Before, o.Group.Document), DryRun: dryRun,
	}, nil
}

// change writes a command to the log, unless the current state already shows that it
// would do nothing. The caller must have called sync. The outcome is what the command
// did, or in a dry run would do.
func (c *Control) change(ctx context.Context, command *agentv1.Command, dryRun bool) (fleet.Outcome, error) {
	c.mu.Lock()
	preview := c.state.Preview(command)
	c.mu.Unlock()
	if preview.Refused != nil || !preview.Changed || dryRun {
		return result(preview)
	}
	return c.submit(ctx, command)
}

// submit writes a command to the log and waits for its outcome.
func (c *Control) submit(ctx context.Context, command *agentv1.Command) (fleet.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	select {
	case c.changes <- struct{}{}:
		defer func() { <-c.changes }()
	case <-ctx.Done():
		return fleet.Outcome{}, notChanged(fmt.Errorf("%d changes are in progress: %w", changesAtOnce, ctx.Err()))
	}
	command.RequestId, command.TimeUnixNano = rand.Text(), uint64(c.opts.Now().UnixNano())
	value, err := proto.Marshal(command)
	if err != nil {
		return fleet.Outcome{}, api.Invalid(fmt.Errorf("marshal the command: %w", err))
	}
	outcome := make(chan fleet.Outcome, 1)
	c.mu.Lock()
	c.waiting[command.RequestId] = outcome
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, command.RequestId)
		c.mu.Unlock()
	}()
	if err := c.opts.Commands.Produce(ctx, []kafka.Outgoing{{Value: value}}); err != nil {
		select {
		case o := <-outcome: // only the acknowledgement was lost
			return result(o)
		default:
		}
		if errors.Is(err, kafka.ErrTooLarge) {
			return fleet.Outcome{}, api.Invalid(err)
		}
		return fleet.Outcome{}, outcomeUnknown(err)
	}
	select {
	case o := <-outcome:
		return result(o)
	case <-ctx.Done():
		return fleet.Outcome{}, unconfirmed(ctx.Err())
	}
}

func result(o fleet.Outcome) (fleet.Outcome, error) {
	if o.Refused != nil {
		return fleet.Outcome{}, problem(o.Refused)
	}
	return o, nil
}

func problem(r *fleet.Refusal) error {
	switch r.Reason {
	case fleet.NotFound:
		return api.NotFound("%s", r.Text)
	case fleet.Conflict:
		return api.Conflict("%s", r.Text)
	case fleet.Malformed:
	}
	return api.Invalid(r)
}

// A change can fail temporarily in three ways.

func notChanged(err error) error {
	var known *api.Problem
	if errors.As(err, &known) {
		return err
	}
	return api.Unavailable("nothing was changed, because kafka is unreachable: %v", err)
}

func outcomeUnknown(err error) error {
	return api.Unavailable("kafka did not acknowledge the change, so it may or may not have been made; it is safe to retry: %v", err)
}

func unconfirmed(err error) error {
	return api.Unavailable("the change is stored, but this server has not read it back yet: %v", err)
}

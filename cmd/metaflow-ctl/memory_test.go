package main

import (
	"context"
	"slices"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

// memory is an in-memory Service without replicas.
type memory struct {
	agents []api.Agent
	groups []*memoryGroup
}

type memoryGroup struct {
	api.Group
	doc agentconfig.Document
}

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newMemory() *memory {
	return &memory{
		agents: []api.Agent{
			{
				ID: "a-1", Name: "node-1", Host: "node-1.example", Addresses: []string{"10.0.0.1", "fd00::1"}, Version: "1.0.0", Cluster: "prod",
				Group: "default", GroupID: "g-default000", State: api.StateRunning, Exceptions: []string{}, Seen: now.Add(-3 * time.Second),
				Started: now.Add(-50 * time.Hour), ClockOffset: 1500 * time.Microsecond, Revision: 7, GroupRevision: 7, Peer: "10.0.0.1:4711", Replica: "metaflow-server-0",
			},
			{
				ID: "a-2", Name: "node-2", Host: "node-2.example", Addresses: []string{"10.0.0.2"}, Version: "1.0.0", Group: "shop", GroupID: "g-shop000000",
				State: api.StatePending, Exceptions: []string{"port 38086 is taken", "clock \x1b[31m2s ahead"}, Seen: now.Add(-90 * time.Minute),
				Started: now.Add(-3 * time.Minute), ClockOffset: -2 * time.Second, Revision: 8, GroupRevision: 9, Peer: "10.0.0.2:4711", Replica: "metaflow-server-1",
			},
			{ID: "a-3", Name: "host-3", Group: "gone", State: api.StateLost},
		},
		groups: []*memoryGroup{
			{Group: api.Group{ID: "g-default000", Name: "default", Agents: 1, Revision: 1, Created: now}},
			{Group: api.Group{ID: "g-shop000000", Name: "shop", Agents: 1, Revision: 9, Created: now}},
		},
	}
}

func (m *memory) Agents(context.Context) ([]api.Agent, error) { return m.agents, nil }

func (m *memory) Agent(_ context.Context, name string) (api.Agent, error) {
	for _, a := range m.agents {
		if a.ID == name || a.Name == name {
			return a, nil
		}
	}
	return api.Agent{}, api.NotFound("there is no agent %q", name)
}

func (m *memory) DeleteAgent(ctx context.Context, name string) error {
	a, err := m.Agent(ctx, name)
	if a.State == api.StateRunning {
		return api.Conflict("agent %s is connected to %s and would come back: stop it first; a stopped agent is known as such within a minute", a.ID, a.Replica)
	}
	m.agents = slices.DeleteFunc(m.agents, func(b api.Agent) bool { return a.ID == b.ID })
	return err
}

func (m *memory) Groups(context.Context) ([]api.Group, error) {
	var groups []api.Group
	for _, g := range m.groups {
		groups = append(groups, g.Group)
	}
	return groups, nil
}

func (m *memory) group(name string) (*memoryGroup, error) {
	for _, g := range m.groups {
		if g.ID == name || g.Name == name {
			return g, nil
		}
	}
	return nil, api.NotFound("there is no agent group %q", name)
}

func (m *memory) CreateGroup(_ context.Context, name, id string) (api.Group, error) {
	if _, err := m.group(name); err == nil {
		return api.Group{}, api.Conflict("the agent group %q already exists", name)
	}
	if id == "" {
		id = "g-chosen0000"
	}
	g := &memoryGroup{Group: api.Group{ID: id, Name: name, Revision: 20, Created: now}}
	m.groups = append(m.groups, g)
	return g.Group, nil
}

func (m *memory) DeleteGroup(_ context.Context, name string) error {
	g, err := m.group(name)
	m.groups = slices.DeleteFunc(m.groups, func(h *memoryGroup) bool { return g == h })
	return err
}

func (g *memoryGroup) configuration() api.Configuration {
	return api.Configuration{GroupID: g.ID, GroupName: g.Name, Revision: g.Revision, YAML: string(g.doc.YAML(g.ID))}
}

func (m *memory) Configurations(context.Context) ([]api.Configuration, error) {
	var list []api.Configuration
	for _, g := range m.groups {
		list = append(list, g.configuration())
	}
	return list, nil
}

func (m *memory) Configuration(_ context.Context, group string) (api.Configuration, error) {
	g, err := m.group(group)
	if err != nil {
		return api.Configuration{}, err
	}
	return g.configuration(), nil
}

func (m *memory) UpdateConfiguration(_ context.Context, group string, text []byte, opts api.UpdateOptions) (api.Update, error) {
	g, err := m.group(group)
	if err != nil {
		return api.Update{}, err
	}
	doc, _, err := agentconfig.Parse(text)
	switch {
	case err != nil:
		return api.Update{}, api.Invalid(err)
	case opts.Create && !g.doc.Empty():
		return api.Update{}, api.Conflict("the agent group %q already has a configuration", g.Name)
	case !opts.Replace:
		doc = g.doc.Merge(doc)
	}
	u := api.Update{GroupID: g.ID, GroupName: g.Name, Changes: agentconfig.Diff(g.doc, doc), DryRun: opts.DryRun}
	if !opts.DryRun {
		g.doc = doc
		g.Revision++
	}
	u.Revision = g.Revision
	return u, nil
}

func (m *memory) DeleteConfiguration(ctx context.Context, group string) (api.Update, error) {
	return m.UpdateConfiguration(ctx, group, nil, api.UpdateOptions{Replace: true})
}

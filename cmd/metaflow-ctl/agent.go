package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

func newAgent(o *options) *cobra.Command {
	list := &cobra.Command{
		Use: "list [AGENT]", Short: "List the agents, or one", Args: program.Args(cobra.MaximumNArgs(1)),
		Long: `list prints the agents and their states: running; pending while an agent has not
applied the configuration of its group; lost after a minute without a heartbeat.
CLOCK is how far the agent's clock is ahead of the server's. EXCEPTIONS lists the
agent's problems, and any other agent that was refused because it has the same id.`,
		ValidArgsFunction: o.completeArg(agents), RunE: o.run(listAgents),
	}
	show := &cobra.Command{
		Use: "show AGENT", Short: "Show the details of an agent", Args: program.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: o.completeArg(agents), RunE: o.run(showAgent),
	}
	remove := &cobra.Command{
		Use: "delete AGENT", Aliases: []string{"release"}, Short: "Forget an agent that is gone and free its id", Args: program.Args(cobra.ExactArgs(1)),
		Long:              "delete forgets an agent. It refuses to while the agent is connected: stop the agent first.",
		ValidArgsFunction: o.completeArg(agents),
		RunE: o.run(func(c *call) error {
			if err := c.service.DeleteAgent(c.Context(), c.named()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "agent %s deleted\n", c.named())
			return err
		}),
	}
	return program.Group("agent", "List and inspect agents", list, show, remove)
}

func listAgents(c *call) error {
	agents, err := c.service.Agents(c.Context())
	if err != nil {
		return err
	}
	if name := c.named(); name != "" {
		agents = slices.DeleteFunc(agents, func(a api.Agent) bool { return a.ID != name && a.Name != name })
		if len(agents) == 0 {
			return fmt.Errorf("there is no agent %q", name)
		}
	}
	return c.print(agents, func() *table {
		t := &table{head: []string{"NAME", "ID", "STATE", "GROUP", "ADDRESS", "CLUSTER", "VERSION", "REVISION", "SEEN", "CLOCK", "EXCEPTIONS"}}
		for _, a := range agents {
			t.add(a.Name, a.ID, a.State, a.Group, first(a.Addresses), a.Cluster, a.Version, revision(a), c.ago(a.Seen), offset(a.ClockOffset), strings.Join(a.Exceptions, "; "))
		}
		return t
	})
}

func showAgent(c *call) error {
	a, err := c.service.Agent(c.Context(), c.named())
	if err != nil {
		return err
	}
	return c.print(a, func() *table {
		t := &table{}
		t.add("name", a.Name)
		t.add("id", a.ID)
		t.add("state", a.State)
		t.add("host", a.Host)
		t.add("addresses", strings.Join(a.Addresses, ", "))
		t.add("cluster", a.Cluster)
		t.add("version", a.Version)
		t.add("group", a.Group)
		t.add("group id", a.GroupID)
		t.add("revision", revision(a))
		t.add("started", c.at(a.Started))
		t.add("seen", c.at(a.Seen))
		t.add("clock", offset(a.ClockOffset))
		t.add("connects from", a.Peer)
		t.add("connected to", a.Replica)
		if len(a.Exceptions) == 0 {
			t.add("exceptions", "")
		}
		for _, text := range a.Exceptions {
			t.add("exception", text)
		}
		return t
	})
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// revision also shows the revision that the agent should have, if it differs.
func revision(a api.Agent) string {
	if a.GroupRevision == 0 || a.Revision == a.GroupRevision {
		return strconv.FormatUint(a.Revision, 10)
	}
	return fmt.Sprintf("%d of %d", a.Revision, a.GroupRevision)
}

// ago returns the time since t in its largest unit.
func (c *call) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	const day = 24 * time.Hour
	switch d := max(c.env.now().Sub(t), 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}

func (c *call) at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), c.ago(t))
}

// offset rounds to the accuracy that the network between agent and server allows.
func offset(d time.Duration) string {
	if d = d.Round(time.Millisecond); d > 0 {
		return "+" + d.String()
	}
	return d.String()
}

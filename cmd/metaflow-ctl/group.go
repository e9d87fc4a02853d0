package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

func newGroup(o *options) *cobra.Command {
	list := &cobra.Command{
		Use: "list [GROUP]", Short: "List the agent groups, or one", Args: program.Args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: o.completeArg(groups), RunE: o.run(listGroups),
	}
	create := &cobra.Command{
		Use: "create NAME", Short: "Create an agent group, or all groups of a file", Args: program.Args(cobra.MaximumNArgs(1)),
		Long: `create creates the group NAME. With -f it creates all groups of a file that list wrote and
that do not exist, with their ids:

  agent-group list -o json > groups.json
  agent-group create -f groups.json`,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	id := create.Flags().String("id", "", "`ID` of the group, g- and ten lower-case letters or digits; by default the server chooses one")
	from := create.Flags().StringP("file", "f", "", "JSON `FILE` with groups, from list -o json; - is standard input")
	create.RunE = o.run(func(c *call) error {
		switch {
		case *from != "" && (c.named() != "" || *id != ""):
			return program.Usage("-f %s names the groups: give neither NAME nor --id", *from)
		case *from != "":
			return createGroups(c, *from)
		case c.named() == "":
			return program.Usage("NAME is missing; write: %s NAME", c.CommandPath())
		}
		g, err := c.service.CreateGroup(c.Context(), c.named(), *id)
		if err != nil {
			return err
		}
		return c.print(g, func() *table { return groupTable([]api.Group{g}) })
	})
	remove := &cobra.Command{
		Use: "delete GROUP", Short: "Delete an agent group and its configuration", Args: program.Args(cobra.ExactArgs(1)),
		Long: `delete deletes a group. Its agents keep their current configuration and are pending
until they name another group or a group of this name exists again.`,
		ValidArgsFunction: o.completeArg(groups),
		RunE: o.run(func(c *call) error {
			if err := c.service.DeleteGroup(c.Context(), c.named()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "agent group %s deleted\n", c.named())
			return err
		}),
	}
	return program.Group("agent-group", "Manage agent groups", list, create, remove)
}

func listGroups(c *call) error {
	groups, err := c.service.Groups(c.Context())
	if err != nil {
		return err
	}
	if name := c.named(); name != "" {
		groups = slices.DeleteFunc(groups, func(g api.Group) bool { return g.ID != name && g.Name != name })
		if len(groups) == 0 {
			return fmt.Errorf("there is no agent group %q", name)
		}
	}
	return c.print(groups, func() *table { return groupTable(groups) })
}

// createGroups creates the groups of a file that do not exist, and prints them.
func createGroups(c *call, name string) error {
	f, err := readFile(name, c.InOrStdin())
	if err != nil {
		return err
	}
	var wanted []api.Group
	if err := json.Unmarshal(f.documents[0], &wanted); err != nil {
		return fmt.Errorf("%s is not the output of 'agent-group list -o json': %w", f.name, err)
	}
	present, err := c.service.Groups(c.Context())
	if err != nil {
		return err
	}
	created := []api.Group{}
	for _, w := range wanted {
		if slices.ContainsFunc(present, func(g api.Group) bool { return g.ID == w.ID && g.Name == w.Name }) {
			continue
		}
		g, err := c.service.CreateGroup(c.Context(), w.Name, w.ID)
		if err != nil {
			return fmt.Errorf("create %s (%s): %w", w.Name, w.ID, err)
		}
		created = append(created, g)
	}
	return c.print(created, func() *table { return groupTable(created) })
}

func groupTable(groups []api.Group) *table {
	t := &table{head: []string{"NAME", "ID", "AGENTS"}}
	for _, g := range groups {
		t.add(g.Name, g.ID, strconv.Itoa(g.Agents))
	}
	return t
}

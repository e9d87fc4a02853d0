package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

func newGroupConfig(o *options) *cobra.Command {
	list := &cobra.Command{
		Use: "list [GROUP]", Short: "List the configurations of all agent groups, or of one", Args: program.Args(cobra.MaximumNArgs(1)),
		Long: `list prints which groups have a configuration; with -o yaml, it prints the
configurations in the form that update reads:

  agent-group-config list -o yaml > agents.yaml
  agent-group-config update -f agents.yaml`,
		ValidArgsFunction: o.completeArg(groups), RunE: o.run(listConfigurations),
	}
	show := &cobra.Command{
		Use: "show GROUP", Short: "Show every key of a group's configuration with its value", Args: program.Args(cobra.ExactArgs(1)),
		Long: `show prints every key with its effective value, and whether the group sets it or it is
the default. With -o yaml, it prints only what the group sets.`,
		ValidArgsFunction: o.completeArg(groups), RunE: o.run(showConfiguration),
	}
	create := &cobra.Command{
		Use: "create [GROUP] -f FILE", Short: "Set the configuration of a group that has none",
		Args: program.Args(cobra.MaximumNArgs(1)), ValidArgsFunction: o.completeArg(groups),
	}
	createFrom := addFile(create)
	create.RunE = o.run(func(c *call) error { return set(c, *createFrom, api.UpdateOptions{Create: true}) })

	update := &cobra.Command{
		Use: "update [GROUP] -f FILE", Short: "Change the configuration of a group and print what changed",
		Long: `update sets the keys in the file, keeps the others, and prints every key whose value
changes for the agents. A file with a mistake changes nothing.
The group may be omitted if the file names it (agent_group_id). A file may contain
several groups, separated by lines of three hyphens. 'agent-group-config example' prints
every key with its meaning.`,
		Args: program.Args(cobra.MaximumNArgs(1)), ValidArgsFunction: o.completeArg(groups),
	}
	updateFrom := addFile(update)
	var opts api.UpdateOptions
	update.Flags().BoolVar(&opts.Replace, "replace", false, "reset the keys that are not in the file to their defaults")
	update.Flags().BoolVar(&opts.DryRun, "dry-run", false, "only print what would change")
	update.RunE = o.run(func(c *call) error { return set(c, *updateFrom, opts) })

	remove := &cobra.Command{
		Use: "delete GROUP", Short: "Reset every key of a group to its default", Args: program.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: o.completeArg(groups),
		RunE: o.run(func(c *call) error {
			u, err := c.service.DeleteConfiguration(c.Context(), c.named())
			if err != nil {
				return err
			}
			return c.printUpdates([]api.Update{u})
		}),
	}
	example := &cobra.Command{
		Use: "example", Short: "Print every key with its meaning, range and default, as a usable file", Args: program.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(agentconfig.Example())
			return err
		},
	}
	return program.Group("agent-group-config", "Configure the agents of a group", list, show, create, update, remove, example)
}

func addFile(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("file", "f", "", "YAML `FILE` with the configuration; - is standard input")
}

func listConfigurations(c *call) error {
	configurations, err := c.configurations()
	switch {
	case err != nil:
		return err
	case c.output == formatYAML:
		return printTexts(c.OutOrStdout(), configurations)
	}
	return c.print(configurations, func() *table {
		t := &table{head: []string{"NAME", "AGENT_GROUP_ID"}}
		for _, conf := range configurations {
			t.add(conf.GroupName, conf.GroupID)
		}
		return t
	})
}

// configurations returns the configuration of the named group, or of all groups.
func (c *call) configurations() ([]api.Configuration, error) {
	if c.named() == "" {
		return c.service.Configurations(c.Context())
	}
	conf, err := c.service.Configuration(c.Context(), c.named())
	return []api.Configuration{conf}, err
}

// printTexts writes configurations in the form that update reads.
func printTexts(w io.Writer, configurations []api.Configuration) error {
	var b strings.Builder
	for i, conf := range configurations {
		if i > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "# %s, revision %d\n%s", cell(conf.GroupName), conf.Revision, conf.YAML)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func showConfiguration(c *call) error {
	conf, err := c.service.Configuration(c.Context(), c.named())
	switch {
	case err != nil:
		return err
	case c.output == formatYAML:
		return printTexts(c.OutOrStdout(), []api.Configuration{conf})
	}
	doc, unknown, err := agentconfig.ParseLenient([]byte(conf.YAML))
	if err != nil {
		return fmt.Errorf("read the configuration of %s: %w", conf.GroupName, err)
	}
	for _, text := range unknown { // the server is newer
		fmt.Fprintln(c.ErrOrStderr(), "not shown:", text)
	}
	shown := struct {
		api.Configuration
		Values []agentconfig.Value `json:"values"`
	}{conf, doc.Values()}
	return c.print(shown, func() *table {
		t := &table{head: []string{"KEY", "VALUE", "FROM"}}
		for _, v := range shown.Values {
			from := "default"
			if v.Set {
				from = "group"
			}
			t.add(v.Key, v.Value, from)
		}
		return t
	})
}

// set sends each of a file's documents to its group.
func set(c *call, name string, opts api.UpdateOptions) error {
	if name == "" {
		return program.Usage("-f is required: -f FILE, or -f - for standard input")
	}
	f, err := readFile(name, c.InOrStdin())
	if err != nil {
		return err
	}
	if c.named() != "" && len(f.documents) > 1 {
		return fmt.Errorf("%s holds the configurations of %d groups; omit %q to set them all", f.name, len(f.documents), c.named())
	}
	targets := make([]string, len(f.documents))
	for i, text := range f.documents {
		if targets[i], err = c.target(f, text); err != nil {
			return err
		}
	}
	if len(f.documents) > 1 { // a refused document must not leave half of the groups changed
		for i, text := range f.documents {
			dry := opts
			dry.DryRun = true
			if _, err := c.service.UpdateConfiguration(c.Context(), targets[i], text, dry); err != nil {
				return f.explain(err)
			}
		}
	}
	var updates []api.Update
	for i, text := range f.documents {
		u, err := c.service.UpdateConfiguration(c.Context(), targets[i], text, opts)
		if err != nil {
			return errors.Join(f.explain(err), c.printUnfinished(updates))
		}
		updates = append(updates, u)
	}
	return c.printUpdates(updates)
}

// target returns the group that a document is for. The command line and the document must
// not name different groups.
func (c *call) target(f *file, text []byte) (string, error) {
	_, inFile, err := agentconfig.Parse(text)
	named := c.named()
	switch {
	case named == "" && inFile != "":
		return inFile, nil
	case named == "" && err != nil: // it may explain why no group was found
		return "", f.explain(api.Invalid(err))
	case named == "":
		return "", program.Usage("no group is given: name it, or set agent_group_id in %s", f.name)
	case inFile == "" || inFile == named:
		return named, nil
	}
	groups, err := c.service.Groups(c.Context())
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(groups, func(g api.Group) bool {
		return (g.ID == named || g.Name == named) && (g.ID == inFile || g.Name == inFile)
	}) {
		return "", fmt.Errorf("%s is for the agent group %q, and the command line names %q; nothing was changed", f.name, inFile, named)
	}
	return named, nil
}

// printUnfinished prints what was changed before an error.
func (c *call) printUnfinished(done []api.Update) error {
	if len(done) == 0 {
		return nil
	}
	return c.printUpdates(done)
}

func (c *call) printUpdates(updates []api.Update) error {
	if c.output != formatTable {
		if len(updates) == 1 {
			return c.print(updates[0], nil)
		}
		return c.print(updates, nil)
	}
	w := c.OutOrStdout()
	for _, u := range updates {
		if len(updates) > 1 {
			fmt.Fprintf(w, "%s (%s):\n", cell(u.GroupName), cell(u.GroupID))
		}
		if len(u.Changes) == 0 {
			fmt.Fprintln(w, "no change")
			continue
		}
		t := table{head: []string{"KEY", "OLD", "NEW"}}
		for _, change := range u.Changes {
			t.add(change.Key, change.Old, change.New)
		}
		if err := t.write(w); err != nil {
			return err
		}
	}
	if len(updates) > 0 && updates[0].DryRun {
		fmt.Fprintln(c.ErrOrStderr(), "dry run: nothing was changed")
	}
	return nil
}

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

// completionTimeout bounds the wait for completions.
const completionTimeout = 2 * time.Second

// completions asks the server for the possible values of an argument.
type completions func(context.Context, api.Service) ([]cobra.Completion, error)

func agents(ctx context.Context, s api.Service) ([]cobra.Completion, error) {
	list, err := s.Agents(ctx)
	var found []cobra.Completion
	for _, a := range list {
		found = append(found, cobra.CompletionWithDesc(a.Name, a.State+" in "+a.Group))
	}
	return found, err
}

func groups(ctx context.Context, s api.Service) ([]cobra.Completion, error) {
	list, err := s.Groups(ctx)
	var found []cobra.Completion
	for _, g := range list {
		found = append(found, cobra.CompletionWithDesc(g.ID, g.Name), cobra.CompletionWithDesc(g.Name, g.ID))
	}
	return found, err
}

// completeArg completes the only argument of a command.
func (o *options) completeArg(from completions) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 || o.complete(cmd) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, err := o.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		found, err := from(ctx, client)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes a flag from a list of values.
func completeFlag(cmd *cobra.Command, flag string, values []string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag
	}
}

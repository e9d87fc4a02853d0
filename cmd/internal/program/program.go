// Package program holds what the command lines of MetaFlow's programs share:
// exit statuses, errors, help, logging, and the commands for a configuration.
// It contains nothing specific to one program.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/pkg/config"
)

// Exit statuses for scripts.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2 // invalid flags or configuration: a retry will not help
)

// Run executes root until it returns or a signal ends it, prints its error, and
// returns the exit status. Nothing below it exits, reads flags or catches
// signals.
func Run(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills at once

	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var wrong *config.Error
	var usage *UsageError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "%s: invalid configuration:\n", root.Name())
		for _, p := range wrong.Problems {
			fmt.Fprintln(stderr, "  "+p.String())
		}
		return ExitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "%s: %v\nTry --help.\n", root.Name(), err)
		return ExitUsage
	default:
		fmt.Fprintf(stderr, "%s: %v\n", root.Name(), err)
		return ExitFailed
	}
}

// UsageError is an invalid command line.
type UsageError struct{ Cause error }

func (e *UsageError) Error() string { return e.Cause.Error() }

func (e *UsageError) Unwrap() error { return e.Cause }

// Usage returns a formatted UsageError.
func Usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Root returns the command of a whole program.
func Root(use, short string, commands ...*cobra.Command) *cobra.Command {
	root := Group(use, short, append(commands, newVersion(use))...)
	root.Version = Version()
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n") // as the command version prints it
	root.SilenceErrors = true                           // Run prints them, once
	root.SilenceUsage = true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd.HasSubCommands() {
			// An unknown command before the flag is the reason why that is unknown.
			if wrong := cmd.ValidateArgs(cmd.Flags().Args()); wrong != nil {
				return wrong
			}
		}
		return flagError(err)
	})
	return root
}

// Commands are the commands of the programs, besides those that every program has. An unknown
// command may be another program's.
var Commands = map[string][]string{
	"metaflow-server": {"serve", "standalone", "migrate", "config", "deadletter", "mcp"},
	"metaflow-agent":  {"run", "check", "parked", "config"},
	"metaflow-ctl":    {"agent", "agent-group", "agent-group-config", "verify"},
}

// Group returns a command that only has subcommands.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: subcommand, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}

// subcommand is the check of the arguments of a group: they begin with none of its commands.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	near := cmd.SuggestionsFor(args[0])
	if !cmd.HasParent() {
		for _, program := range slices.Sorted(maps.Keys(Commands)) {
			if slices.Contains(Commands[program], args[0]) {
				near = append(near, program+" "+args[0])
			}
		}
	}
	if len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return &UsageError{err}
}

// Args turns the errors of an argument check into usage errors that say what to write.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		use := strings.TrimSuffix(cmd.UseLine(), " [flags]")
		for n := len(args) - 1; n >= 0; n-- {
			if check(cmd, args[:n]) == nil {
				return Usage("unexpected argument %q; write: %s", args[n], use)
			}
		}
		if missing := strings.Fields(strings.TrimPrefix(use, cmd.CommandPath())); len(args) < len(missing) {
			return Usage("%s is missing; write: %s", missing[len(args)], use)
		}
		return Usage("%w; write: %s", err, use)
	}
}

func newVersion(program string) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), program, Version())
			return err
		},
	}
}

// Release is the version of the programs, the packages and the chart.
const Release = "0.1.0"

// Version returns the release, with the revision and the Go version that the toolchain
// recorded in the program.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Release
	}
	v := Release
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}

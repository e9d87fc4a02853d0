package main

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/pkg/config"
)

func newRoot() *cobra.Command {
	root := group("metaflow-server", "Keep every OpenTelemetry span exactly once, ready for SQL",
		newServe(), newStandalone(), newMigrate(), newConfig(), newDeadLetter(), newVersion())
	root.Long = `metaflow-server receives OpenTelemetry spans over OTLP/gRPC, queues them in
Kafka partitioned by trace and stores each exactly once in ClickHouse.

To try it without installing anything else:  metaflow-server standalone --data-dir DIR`
	root.SilenceErrors = true // run prints them, once
	root.SilenceUsage = true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	return root
}

// noArgs is cobra.NoArgs with an error that is told apart from a failure.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return &usageError{err}
	}
	return nil
}

// group is a command that only has subcommands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
			}
			return &usageError{err}
		}
		return cmd.Help()
	}}
	cmd.AddCommand(commands...)
	return cmd
}

// configFlags are the flags of every command that reads the configuration.
type configFlags struct {
	file string
	keys map[string]string // flag name -> key
}

// addConfigFlags gives cmd --config, and a flag for each of the keys.
func addConfigFlags(cmd *cobra.Command, keys map[string]string) *configFlags {
	f := &configFlags{keys: map[string]string{}}
	cmd.Flags().StringVar(&f.file, "config", "", "YAML `FILE` with the configuration; 'metaflow-server config print' shows every key")
	byName := map[string]config.Key{}
	for _, k := range config.Keys(defaultServer(), envPrefix) {
		byName[k.Name] = k
	}
	for flag, key := range keys {
		cmd.Flags().String(flag, byName[key].Default, byName[key].Doc)
		f.keys[flag] = key
	}
	return f
}

// load returns the effective configuration.
func (f *configFlags) load(cmd *cobra.Command) (*server, error) {
	cfg := defaultServer()
	err := config.Load(cfg, config.Options{File: f.file, EnvPrefix: envPrefix, Flags: cmd.Flags(), FlagKeys: f.keys})
	return cfg, err
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "metaflow-server", version())
			return err
		},
	}
}

// version is what the Go toolchain recorded when the program was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}

package main

import (
	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

// flagKeys are the flags of every command that reads the configuration.
var flagKeys = map[string]string{
	"server":      "server.addresses",
	"group":       "group",
	"spool-dir":   "spool.dir",
	"http-listen": "http.listen",
}

func newRoot() *cobra.Command {
	root := program.Root("metaflow-agent", "Send the traces and flow data of this host to metaflow-server",
		newRun(), newCheck(), newParked(), configured.Command(flagKeys))
	root.Long = `metaflow-agent receives OpenTelemetry traces over OTLP/HTTP from the collector of
its host and forwards them to metaflow-server over gRPC. While no server can take
them it keeps them on disk. Its listener is off until the configuration of
its agent group switches it on:

  metaflow-ctl agent-group-config update GROUP -f agent.yaml

On a plain host:  metaflow-agent run --server HOST:20035`
	return root
}

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent until SIGTERM",
		Long: `run connects to the servers, takes the configuration of its agent group from
them, and opens the ports that it names. --server takes several addresses,
separated by commas; a name that resolves to several addresses means all of them.`,
		Args: program.Args(cobra.NoArgs),
	}
	flags := configured.AddFlags(cmd, flagKeys)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		a, err := newApp(cfg, cfg.Log.Logger(cmd.ErrOrStderr()))
		if err != nil {
			return err
		}
		return a.run(cmd.Context())
	}
	return cmd
}

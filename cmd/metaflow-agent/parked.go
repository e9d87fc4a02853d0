package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agent"
	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
)

func newParked() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the requests from the spool that servers rejected, with the cause",
		Long: `list shows the requests that the agent has acknowledged and that servers did not
take: how much of each is not stored, whether the agent tries it again by itself,
and what the server answered. Each is a file in the folder 'parked' of spool.dir
whose first line says the same; remove the file to give the request up.`,
		Args: program.Args(cobra.NoArgs),
	}
	withFolder(list, func(cmd *cobra.Command, _ *settings, folder *parked.Folder, _ []string) error {
		heads, err := folder.List()
		if err != nil {
			return err
		}
		return printParked(cmd.OutOrStdout(), heads)
	})

	var timeout time.Duration
	retry := &cobra.Command{
		Use:   "retry [NAME...]",
		Short: "Send parked requests again, after the cause is fixed",
		Long: `retry sends the parked requests named, or all of them, to the servers and removes
those that are stored. Spans that are stored already are recognized by their ids, so it
is safe to repeat, and the agent may be running. The exit status is 1 unless all are stored.`,
		Args: cobra.ArbitraryArgs,
	}
	program.DurationVar(retry.Flags(), &timeout, "timeout", time.Minute, "how long to wait for a server")
	withFolder(retry, func(cmd *cobra.Command, cfg *settings, folder *parked.Folder, names []string) error {
		return retryParked(cmd, cfg, folder, names, timeout)
	})
	return program.Group("parked", "List and resend requests that servers rejected", list, retry)
}

// withFolder makes cmd run f with the configuration and the folder of parked
// requests.
func withFolder(cmd *cobra.Command, f func(*cobra.Command, *settings, *parked.Folder, []string) error) {
	flags := configured.AddFlags(cmd, flagKeys)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		if _, err := os.Stat(cfg.Spool.parkedDir()); err != nil { // the agent creates it, as its own user
			return fmt.Errorf("spool.dir: %w", err)
		}
		folder, err := parked.Open(cfg.Spool.parkedDir(), cfg.Spool.ParkedMaxBytes)
		if err != nil {
			return err
		}
		return f(cmd, cfg, folder, args)
	}
}

func printParked(out io.Writer, heads []parked.Head) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tKIND\tRECEIVED\tITEMS\tNOT STORED\tBYTES\tTRIED AGAIN\tCAUSE")
	for _, h := range heads {
		again := "by retry"
		if h.Waits {
			again = "by the agent"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", h.Name, h.Signal, h.Received.Format("2006-01-02 15:04:05"), h.Items, h.Refused, h.Size, again, h.Cause)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s\n", program.Count(len(heads), "parked request"))
	return err
}

func retryParked(cmd *cobra.Command, cfg *settings, folder *parked.Folder, names []string, timeout time.Duration) error {
	for _, name := range names {
		if _, _, err := folder.Get(name); err != nil {
			return err
		}
	}
	log := cfg.Log.Logger(cmd.ErrOrStderr())
	id, err := agent.Identity{ID: cfg.ID, Name: cfg.Name, Cluster: cfg.Cluster, Group: cfg.Group}.Complete()
	if err != nil {
		return fmt.Errorf("identify this host: %w", err)
	}
	secret, err := agent.Secret(cfg.Spool.Dir)
	if err != nil {
		return fmt.Errorf("spool.dir: %w", err)
	}
	up, err := upstream.New(cfg.Server, upstream.Options{Logger: log, AgentID: id.ID, Secret: secret})
	if err != nil {
		return err
	}
	defer up.Close()
	report, err := agent.RetryParked(cmd.Context(), folder, up, agent.RetryOptions{
		Logger: log, Timeout: timeout,
		Keep: func(h parked.Head) bool { return len(names) == 0 || slices.Contains(names, h.Name) },
	})
	fmt.Fprintf(cmd.OutOrStdout(), "%s sent, %s not stored\n", program.Count(report.Sent, "request"), program.Count(len(report.Failed), "request"))
	for _, h := range report.Failed {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", h.Name, h.Cause)
	}
	if err == nil && len(report.Failed) > 0 {
		err = errors.New("some parked requests were not stored")
	}
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agent"
	"github.com/metaflowys/metaflow-server/pkg/agent/capture"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
)

func newCheck() *cobra.Command {
	var timeout time.Duration
	var withoutFlow bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Try the way to every server and the privileges of this process; status 1 if anything fails",
		Long: `check looks up the names of the servers, connects to each of their addresses,
agrees on TLS, and asks the server whether it would admit this agent: with its
token, its certificate, its id and its group. Then it tries the sources of flow
data with the privileges it is run with, so run it as the agent's user. It prints
what it found. Servers do not register the agent, and a running agent may go on.`,
		Args: program.Args(cobra.NoArgs),
	}
	program.DurationVar(cmd.Flags(), &timeout, "timeout", 30*time.Second, "how long to try")
	cmd.Flags().BoolVar(&withoutFlow, "no-flow", false, "do not try the sources of flow data, for agents that only forward traces")
	flags := configured.AddFlags(cmd, flagKeys)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		rows, err := check(ctx, cfg, !withoutFlow, cfg.Log.Logger(cmd.ErrOrStderr()))
		if err != nil {
			return err
		}
		return printChecks(cmd.OutOrStdout(), rows)
	}
	return cmd
}

// checked is one row of the table.
type checked struct {
	what, target, detail string
	err                  error
}

// check tries everything that a running agent needs.
func check(ctx context.Context, cfg *settings, flow bool, log *slog.Logger) ([]checked, error) {
	id, err := agent.Identity{ID: cfg.ID, Name: cfg.Name, Cluster: cfg.Cluster, Group: cfg.Group}.Complete()
	if err != nil {
		return nil, fmt.Errorf("identify this host: %w", err)
	}
	secret, spool := spoolState(cfg.Spool.Dir)
	up, err := upstream.New(cfg.Server, upstream.Options{Logger: log, AgentID: id.ID, Secret: secret})
	if err != nil {
		return nil, err
	}
	defer up.Close()
	var rows []checked
	for _, f := range up.Probe(ctx, id.Registration(program.Version())) {
		rows = append(rows, checked{f.Step, f.Target, f.Detail, f.Err})
	}
	rows = append(rows, spool)
	if flow {
		for _, s := range capture.Sources(netns.Options{}) {
			rows = append(rows, checked{s.Name, "this host", s.Detail, s.Err})
		}
	}
	return rows, nil
}

// spoolState tries the directory of the spool and returns the agent's secret, empty
// before its first start.
func spoolState(dir string) (secret string, row checked) {
	row = checked{what: "spool", target: dir, detail: "writable"}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		row.detail = "does not exist yet; the agent creates it at its first start"
		return "", row
	}
	probe, err := os.CreateTemp(dir, ".check-*")
	if err != nil {
		row.err = fmt.Errorf("%w (spool.dir): run check as the agent's user", err)
		return "", row
	}
	row.err = errors.Join(probe.Close(), os.Remove(probe.Name()))
	if _, err := os.Stat(filepath.Join(dir, agent.SecretFile)); err != nil {
		return "", row
	}
	if secret, err = agent.Secret(dir); err != nil {
		row.err = err
	}
	return secret, row
}

func printChecks(out io.Writer, rows []checked) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tTARGET\tRESULT\tDETAIL")
	failed := 0
	for _, r := range rows {
		result, detail := "ok", r.detail
		if r.err != nil {
			failed++
			result, detail = "FAILED", strings.ReplaceAll(r.err.Error(), "\n", " ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.what, r.target, result, detail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%s failed", program.Count(failed, "check"))
	}
	return nil
}
